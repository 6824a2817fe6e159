"""Write ONNX of a CLIP's dense features and of its text embeddings, for images of any size."""

import sys

from clipself_seg.commands.export import main

if __name__ == "__main__":
    sys.exit(main())
