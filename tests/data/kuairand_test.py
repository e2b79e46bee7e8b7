"""KuaiRand: unknown and rare items are left out, everything else keeps its order."""

import numpy as np
import pytest

from jaxrec.data.builders.kuairand import KuaiRand


def write(folder, **arrays):
    np.savez(folder / "sequences.npz", **arrays)
    return KuaiRand(min_item=2, data_dir=str(folder))


PARTS = {
    "training_items": np.array([7, -1, 9, 7, 9, 5], np.int32),
    "training_lengths": np.array([4, 2], np.int32),
    "evaluation_items": np.array([9, 7, 3], np.int32),
    "evaluation_lengths": np.array([3], np.int32),
    "testing_items": np.array([-1, 3], np.int32),
    "testing_lengths": np.array([2], np.int32),
}


def test_sequences_keep_their_order_without_unknown_and_rare_items(tmp_path):
    found = write(tmp_path, **PARTS).get()
    assert found.items == ["3", "7", "9"]  # 5 has one event, -1 is no item
    assert found.users == ["training 0", "training 1", "evaluation 0", "testing 0"]
    histories = [[found.items[item - 1] for item in found.sequence[low:high]] for low, high in zip(found.offsets, found.offsets[1:], strict=False)]
    assert histories == [["7", "9", "7"], ["9"], ["9", "7", "3"], ["3"]]


def test_bad_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"the testing lengths add up to 2, but there are 3 items"):
        write(tmp_path, **{**PARTS, "testing_items": np.zeros(3, np.int32)}).get()
    with pytest.raises(ValueError, match=r"sequences.npz: .*testing_lengths.*; it must hold"):
        write(tmp_path, **{name: array for name, array in PARTS.items() if name != "testing_lengths"}).get()
    with pytest.raises(ValueError, match="no item has min_item=50 events; lower it"):
        write(tmp_path, **PARTS)
        KuaiRand(min_item=50, data_dir=str(tmp_path)).get()
    (tmp_path / "sequences.npz").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(ValueError, match="is no whole .npz file"):
        KuaiRand(data_dir=str(tmp_path)).get()
    with pytest.raises(FileNotFoundError, match=r"kuairand_autocdsr: sequences.npz not found.*AutoCDSR"):
        KuaiRand(data_dir=str(tmp_path / "nowhere")).get()
