import errno
import json
import threading
from pathlib import Path

import pytest
import torch
from dying import dies_at
from safetensors import SafetensorError, safe_open
from torch import nn

from nmt_ls.experiment import checkpoint
from nmt_ls.experiment.checkpoint import (
    average_weights,
    checkpoint_exists,
    link_checkpoint,
    load_checkpoint,
    load_state,
    load_weights,
    remove_checkpoint,
    save_checkpoint,
    tidy_checkpoint,
)
from nmt_ls.experiment.command_line import UserError

pytestmark = pytest.mark.usefixtures("quick")


def filled(value: float) -> dict[str, torch.Tensor]:
    return {"a": torch.full((300,), value), "b": torch.full((2, 2), value)}


def assert_is(directory, value: float) -> None:
    weights, state = load_checkpoint(directory)
    assert state == {"step": int(value), "nested": [1, {"x": None}]}
    assert torch.equal(weights["a"], torch.full((300,), value))


def save(directory, value: float) -> None:
    save_checkpoint(directory, filled(value), {"step": int(value), "nested": [1, {"x": None}]})


def test_round_trip(tmp_path):
    weights = {
        "float": torch.randn(3, 4),
        "half": torch.randn(5).to(torch.bfloat16),
        "count": torch.tensor(7),
        "turned": torch.randn(3, 4).T,
        "part": torch.randn(10)[2:5],
        "empty": torch.zeros(0, 3),
        "parameter": nn.Parameter(torch.randn(2)),
    }
    state = {
        "rng": torch.get_rng_state(),
        "tuple": (1, 2.5),
        "text": "ä",
        "optimizer": {0: {"step": torch.tensor(3.0)}},
    }
    save_checkpoint(tmp_path / "deep" / "last", weights, state)
    got, got_state = load_checkpoint(tmp_path / "deep" / "last")
    assert set(got) == set(weights)
    for name, tensor in weights.items():
        assert got[name].dtype == tensor.dtype
        assert torch.equal(got[name], tensor), name
    assert torch.equal(got_state.pop("rng"), state.pop("rng"))
    assert got_state == state
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["last"]
    files = sorted(path.name for path in (tmp_path / "deep" / "last").iterdir())
    assert files == ["checksums.json", "state.pt", "weights.safetensors"]


def test_tied_parameters_are_stored_once_and_restored(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(10, 4)
            self.other = nn.Linear(4, 10, bias=False)
            self.output = nn.Linear(4, 10, bias=False)
            self.output.weight = self.embedding.weight

    model = Tied()
    save_checkpoint(tmp_path / "a", model.state_dict(), {})
    with safe_open(tmp_path / "a" / "weights.safetensors", framework="pt") as file:
        assert sorted(file.keys()) == ["embedding.weight", "other.weight"]
    weights = load_weights(tmp_path / "a")
    assert weights["output.weight"] is weights["embedding.weight"]
    again = Tied()
    again.load_state_dict(weights)
    assert torch.equal(again.output.weight, model.embedding.weight)
    assert again.output.weight is again.embedding.weight
    mean = average_weights([tmp_path / "a", tmp_path / "a"])
    assert mean["output.weight"] is mean["embedding.weight"]


def test_overlapping_views_are_stored_apart(tmp_path):
    memory = torch.arange(10.0)
    save_checkpoint(tmp_path / "a", {"all": memory, "head": memory[:3], "tail": memory[2:]}, {})
    got = load_weights(tmp_path / "a")
    assert torch.equal(got["all"], memory)
    assert torch.equal(got["head"], memory[:3])
    assert torch.equal(got["tail"], memory[2:])


def test_the_bytes_depend_on_the_weights_alone(tmp_path):
    layer = nn.Linear(3, 3)
    tied = dict.fromkeys("abcdefgh", layer.weight)
    for name in ("x", "y"):
        save_checkpoint(tmp_path / name, tied, {})
    assert (tmp_path / "x/weights.safetensors").read_bytes() == (tmp_path / "y/weights.safetensors").read_bytes()


def test_average_by_hand(tmp_path):
    for i, value in enumerate([1.0, 2.0, 6.0]):
        save_checkpoint(tmp_path / str(i), {"w": torch.full((2,), value), "n": torch.tensor(i)}, {})
    mean = average_weights([tmp_path / "0", tmp_path / "1", tmp_path / "2"])
    assert mean["w"].tolist() == [3.0, 3.0]
    assert mean["w"].dtype == torch.float32
    assert mean["n"] == 2  # a counter: the last one's
    assert load_weights(tmp_path / "2")["w"].tolist() == [6.0, 6.0]


def test_average_is_accumulated_in_float64(tmp_path):
    for i, value in enumerate([2.0**25, 1.0, 1.0, -(2.0**25)]):
        save_checkpoint(tmp_path / str(i), {"w": torch.tensor([value])}, {})
    assert average_weights([tmp_path / str(i) for i in range(4)])["w"].item() == 0.5  # in float32: 0


def test_average_of_different_models_is_refused(tmp_path):
    save_checkpoint(tmp_path / "a", {"w": torch.zeros(2)}, {})
    save_checkpoint(tmp_path / "b", {"w": torch.zeros(3)}, {})
    with pytest.raises(UserError, match=r"a: its weights are not those of the model of .*b"):
        average_weights([tmp_path / "a", tmp_path / "b"])
    with pytest.raises(ValueError, match="at least one"):
        average_weights([])


def damage(path) -> None:
    content = bytearray(path.read_bytes())
    content[-10] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["weights.safetensors", "state.pt"])
def test_one_flipped_bit_is_noticed_and_the_file_named(tmp_path, name):
    save(tmp_path / "a", 1)
    damage(tmp_path / "a" / name)
    with pytest.raises(UserError, match=rf"a/{name}: damaged \(its SHA-256 is not the one in checksums.json\)"):
        load_checkpoint(tmp_path / "a")


@pytest.mark.parametrize("name", ["weights.safetensors", "state.pt"])
def test_a_file_cut_short_is_noticed_without_checksums_too(tmp_path, name):
    save(tmp_path / "a", 1)
    path = tmp_path / "a" / name
    path.write_bytes(path.read_bytes()[:100])
    for verify in (True, False):
        with pytest.raises(UserError, match=f"a/{name}: damaged"):
            load_checkpoint(tmp_path / "a", verify)


@pytest.mark.parametrize("name", ["weights.safetensors", "state.pt", "checksums.json"])
def test_a_missing_file_is_named(tmp_path, name):
    save(tmp_path / "a", 1)
    (tmp_path / "a" / name).unlink()
    with pytest.raises(UserError, match=rf"a/{name}: damaged \(the file is missing\)"):
        load_checkpoint(tmp_path / "a")


def test_damage_elsewhere_does_not_matter(tmp_path):
    save(tmp_path / "a", 1)
    damage(tmp_path / "a" / "state.pt")
    assert load_weights(tmp_path / "a")["a"][0] == 1
    (tmp_path / "a" / "checksums.json").write_text("{}")
    with pytest.raises(UserError, match=r"checksums.json: damaged"):
        load_weights(tmp_path / "a")


def test_nothing_there(tmp_path):
    with pytest.raises(UserError, match="a: there is no checkpoint here"):
        load_checkpoint(tmp_path / "a")
    assert not checkpoint_exists(tmp_path / "a")


def test_state_that_could_run_code_is_never_loaded(tmp_path):
    save(tmp_path / "a", 1)
    torch.save({"step": threading.Thread}, tmp_path / "a" / "state.pt")
    with pytest.raises(UserError, match=r"state.pt: damaged"):
        load_state(tmp_path / "a", verify=False)


def test_a_linked_checkpoint_shares_the_weights_and_outlives_its_source(tmp_path):
    save(tmp_path / "last", 1)
    link_checkpoint(tmp_path / "last", tmp_path / "best", {"step": 1, "nested": [1, {"x": None}]})
    file = "weights.safetensors"
    assert (tmp_path / "last" / file).stat().st_ino == (tmp_path / "best" / file).stat().st_ino
    save(tmp_path / "last", 2)
    assert_is(tmp_path / "best", 1)
    assert_is(tmp_path / "last", 2)
    remove_checkpoint(tmp_path / "last")
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_without_hard_links_the_weights_are_copied(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("no links here")

    monkeypatch.setattr("os.link", refuse)
    save(tmp_path / "last", 1)
    link_checkpoint(tmp_path / "last", tmp_path / "best", {"step": 1, "nested": [1, {"x": None}]})
    assert_is(tmp_path / "best", 1)


@pytest.mark.filterwarnings("ignore:This process")
def test_killed_at_any_action_there_is_the_old_one_or_the_new_one(tmp_path):
    last = tmp_path / "last"
    save(last, 0)
    value, deaths, seen = 0, 0, set()
    for number in range(1, 100):
        died = dies_at(number, lambda new=value + 1: save(last, new))
        step = load_state(last)["step"]
        assert step in (value, value + 1)
        assert_is(last, step)
        assert checkpoint_exists(last)
        seen.add(step - value)
        value = step
        if not died:
            break
        deaths += 1
    assert deaths >= 10
    assert seen == {0, 1}
    tidy_checkpoint(last)
    assert [path.name for path in tmp_path.iterdir()] == ["last"]
    assert_is(last, value)


def test_a_half_written_new_one_is_never_taken(tmp_path):
    new = tmp_path / ".last.new"
    new.mkdir()
    (new / "weights.safetensors").write_bytes(b"half")
    assert not checkpoint_exists(tmp_path / "last")
    save(tmp_path / "last", 1)
    new.mkdir()
    (new / "weights.safetensors").write_bytes(b"half")
    assert_is(tmp_path / "last", 1)
    save(tmp_path / "last", 2)
    assert_is(tmp_path / "last", 2)


def test_a_failed_save_leaves_the_old_one_and_no_litter(tmp_path):
    save(tmp_path / "last", 1)
    with pytest.raises(Exception, match="pickle"):
        save_checkpoint(tmp_path / "last", filled(2), {"step": (lambda: 2)})
    assert_is(tmp_path / "last", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


def fills_the_disk(number, message):
    def fail(*_, **__):
        raise SafetensorError(message) if number is None else OSError(number, message)

    return fail


@pytest.mark.parametrize(
    ("where", "number", "message"),
    [
        ("save_file", None, "I/O error: No space left on device (os error 28)"),
        ("fsync", errno.ENOSPC, "No space left on device"),
    ],
)
def test_where_the_disk_is_full_the_old_one_stays_and_the_user_is_told(tmp_path, monkeypatch, where, number, message):
    save(tmp_path / "last", 1)
    monkeypatch.setattr(checkpoint, where, fills_the_disk(number, message))
    with pytest.raises(UserError, match=r"last: cannot be written \(No space left on device\); make room, then give"):
        save(tmp_path / "last", 2)
    assert_is(tmp_path / "last", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="needs a device that is always full")
def test_where_the_disk_fills_under_the_state_the_user_is_told(tmp_path, monkeypatch):
    """torch says something of its own about it."""
    opened = Path.open

    def full(path, *arguments, **options):
        return opened(Path("/dev/full") if path.name == checkpoint.STATE else path, *arguments, **options)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(UserError, match=r"last: cannot be written \(No space left on device\)"):
        save_checkpoint(tmp_path / "last", filled(1), {"momentum": torch.zeros(1 << 20)})
    assert not list(tmp_path.iterdir())


def test_a_reader_beside_a_writer_sees_whole_checkpoints(tmp_path):
    last = tmp_path / "last"
    save(last, 0)
    done = threading.Event()

    def write() -> None:
        for value in range(1, 40):
            save(last, value)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    reads = 0
    while not done.is_set() or reads == 0:
        weights, state = load_checkpoint(last)
        assert torch.equal(weights["a"], torch.full((300,), float(state["step"])))
        reads += 1
    writer.join()
    assert_is(last, 39)


def test_an_old_checkpoint_that_is_being_removed_is_passed_over(tmp_path, monkeypatch):
    last = tmp_path / "last"
    save(last, 7)
    (tmp_path / ".last.old").mkdir()  # what a writer has half removed, found just before it swapped the new one in
    found = [tmp_path / ".last.old"]
    find = checkpoint._find
    monkeypatch.setattr(checkpoint, "_find", lambda directory: found.pop() if found else find(directory))
    assert_is(last, 7)
    assert not found


def test_checksums_are_of_the_files(tmp_path):
    import hashlib

    save(tmp_path / "a", 1)
    sums = json.loads((tmp_path / "a" / "checksums.json").read_text())
    for name, expected in sums.items():
        assert hashlib.sha256((tmp_path / "a" / name).read_bytes()).hexdigest() == expected
