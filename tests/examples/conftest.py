"""Every script that is tried here is the first of its process, as on a command line."""

import pytest


@pytest.fixture(autouse=True)
def first_of_its_process(own_accelerator):
    """Whatever precision the machine makes the scripts choose."""
