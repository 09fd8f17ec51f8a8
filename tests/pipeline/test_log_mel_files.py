"""AVSBench's log-mel pickles are read in every way a tensor was ever written; none is run."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from combo.pipeline.errors import MediaError
from combo.pipeline.media.log_mel_files import read_log_mel_pickle

SOUND = Path(__file__).parents[1] / "data" / "sound"
GOLDEN = np.load(SOUND / "logmel.npz")


# --- AVSBench's log-mel files -----------------------------------------------------------------


def as_torch_save(tensor: torch.Tensor, path: Path) -> None:
    torch.save(tensor, path)


def as_old_torch_save(tensor: torch.Tensor, path: Path) -> None:
    torch.save(tensor, path, _use_new_zipfile_serialization=False)


def as_pickle(protocol: int) -> Callable[[torch.Tensor, Path], None]:
    def write(tensor: torch.Tensor, path: Path) -> None:
        path.write_bytes(pickle.dumps(tensor, protocol=protocol))

    return write


@pytest.mark.parametrize(
    "write", [as_torch_save, as_old_torch_save, *(as_pickle(protocol) for protocol in (2, 3, 4, 5))]
)
def test_stored_log_mels_are_read_from_every_way_of_writing_a_tensor(
    tmp_path: Path, write: Callable[[torch.Tensor, Path], None]
) -> None:
    patches = torch.from_numpy(GOLDEN["test.examples"])
    # torchvggish hands out tensors that have a gradient, and AVSBench stored them as they are.
    stored = patches.double().requires_grad_().float()
    write(stored, tmp_path / "a.pkl")
    read = read_log_mel_pickle(tmp_path / "a.pkl")
    assert torch.equal(read, patches)
    assert not read.requires_grad
    write(torch.cat([patches, patches])[::2], tmp_path / "a.pkl")
    assert torch.equal(read_log_mel_pickle(tmp_path / "a.pkl"), torch.cat([patches, patches])[::2])


class Harmful:
    def __init__(self, call: Callable[..., object], *arguments: object) -> None:
        self.reduced = call, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.reduced


def test_a_pickle_that_would_run_something_is_refused_and_does_not_run(tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    path = tmp_path / "a.pkl"
    for harmful in (Harmful(proof.touch), Harmful(exec, f"open({str(proof)!r}, 'w')")):
        for content in (
            pickle.dumps(harmful),
            pickle.dumps({"log_mel": [torch.zeros(1), harmful]}),
            # a stored tensor whose numbers are the harmful pickle
            pickle.dumps(Harmful(torch.storage._load_from_bytes, pickle.dumps(harmful))),
        ):
            path.write_bytes(content)
            with pytest.raises(MediaError, match="not a pickled tensor"):
                read_log_mel_pickle(path)
        torch.save(harmful, path)
        with pytest.raises(MediaError, match="not a pickled tensor"):
            read_log_mel_pickle(path)
    assert not proof.exists()
    pickle.loads(pickle.dumps(Harmful(proof.touch)))  # noqa: S301 -- it would have run
    assert proof.exists()


def test_a_pickled_tensor_cannot_reach_beyond_its_numbers(tmp_path: Path) -> None:
    storage = torch.zeros(6).storage()
    rebuild = torch._utils._rebuild_tensor_v2
    for offset, size, stride in ((0, (9, 1, 96, 64), (1, 1, 1, 1)), (-3, (3,), (1,))):
        described = Harmful(rebuild, storage, offset, size, stride, False, {})
        (tmp_path / "a.pkl").write_bytes(pickle.dumps(described))
        with pytest.raises(MediaError, match="not a pickled tensor"):
            read_log_mel_pickle(tmp_path / "a.pkl")


def test_a_pickle_of_something_else_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(b"")
    with pytest.raises(MediaError, match="0 bytes"):
        read_log_mel_pickle(path)
    for content in (b"not a pickle", pickle.dumps([1, 2]), pickle.dumps(np.zeros(3))):
        path.write_bytes(content)
        with pytest.raises(MediaError, match="not a pickled tensor"):
            read_log_mel_pickle(path)
    path.write_bytes(pickle.dumps(torch.zeros(5, 96, 64)))
    with pytest.raises(MediaError, match=r"\[P, 1, 96, 64\]"):
        read_log_mel_pickle(path)
    path.write_bytes(pickle.dumps(torch.full((1, 1, 96, 64), torch.nan)))
    with pytest.raises(MediaError, match="NaN"):
        read_log_mel_pickle(path)
    with pytest.raises(MediaError, match="missing"):
        read_log_mel_pickle(tmp_path / "missing.pkl")
