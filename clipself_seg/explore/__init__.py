"""An interactive page of the dense features of CLIPs, computed in the browser, and a server of it.

`page.py` writes one file of HTML of `templates/explore.html`; `assets/` has its style and scripts, an idea a file.
"""

from clipself_seg import detectron2_needed  # noqa: F401  (says what to do where it is missing)
