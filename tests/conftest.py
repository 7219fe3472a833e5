"""What every test shares: one thread, so that tests side by side do not fight for the cores."""

import os

import torch

torch.set_num_threads(1)
os.environ["NUMBA_NUM_THREADS"] = "1"
