"""Train an RPN on base classes and write its proposals for CLIPSelf."""

import sys

from clipself_seg.commands.train_rpn import main

if __name__ == "__main__":
    sys.exit(main())
