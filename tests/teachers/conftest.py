import pytest
import torch


@pytest.fixture
def batch():
    torch.manual_seed(1)
    return {"input_ids": torch.randint(2, 64, (3, 20)), "labels": torch.randint(2, 64, (3, 9))}
