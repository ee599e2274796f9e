"""Child: may this process choose the NUMA node of its memory?

The call sets the default policy, which it has already: nothing changes where it is allowed.
"""

import ctypes
import json
import os
import sys

SET_MEMPOLICY = 238  # x86-64
MPOL_DEFAULT = 0

libc = ctypes.CDLL(None, use_errno=True)
status = libc.syscall(SET_MEMPOLICY, MPOL_DEFAULT, None, 0)
reason = os.strerror(ctypes.get_errno()) if status else ""
sys.stdout.write(json.dumps({"allowed": status == 0, "reason": reason}) + "\n")
