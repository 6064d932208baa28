"""Let OpenMP's threads sleep while they wait. To be imported before PyTorch, which reads it once.

Validation times PyTorch with as many threads as there are cores. Beside another test process
threads that spin at each barrier make one run take seconds in place of milliseconds.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
