"""Files on the disk: written in one atomic step, and read without trust."""

from filterattr.files.fingerprint import fingerprint
from filterattr.files.safetensors import read_tensors, write_tensors
from filterattr.files.writing import replace_file, replacing

__all__ = [
    "fingerprint",
    "read_tensors",
    "replace_file",
    "replacing",
    "write_tensors",
]
