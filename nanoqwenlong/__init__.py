"""nanoqwenlong: long-context reasoning RL the way QwenLong-L1 does it. Start reading at train_rl.py."""

import sys
if sys.version_info < (3, 10):
    sys.exit("nanoqwenlong needs Python 3.10 or newer; this one is " + sys.version.split()[0])
