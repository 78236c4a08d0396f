import pytest
import torch

from tests.unit.weights_converter import crafted, hostile
from tests.unit.weights_converter.crafted import call, named, pickled, state_dict, tensor, text
from weights_converter.errors import CheckpointError
from weights_converter.inspection import Mention, mentioned_globals

OURS = [
    Mention("torch._utils._rebuild_tensor_v2", True),
    Mention("torch.FloatStorage", True),
    Mention("collections.OrderedDict", True),
]


@pytest.fixture
def mentions(tmp_path):
    def write_and_walk(data):
        path = tmp_path / "checkpoint"
        path.write_bytes(data)
        return mentioned_globals(path)

    return write_and_walk


@pytest.mark.parametrize("wrap", [crafted.archive, crafted.legacy])
def test_every_global_in_order_of_first_mention(mentions, wrap):
    after = tensor() + text("x") + call("os", "system", text("true")) + text("y") + tensor()
    assert mentions(wrap(state_dict(tensor()))) == OURS
    assert mentions(wrap(pickled(b"}(" + text("w") + after + b"u"))) == [
        *OURS,
        Mention("os.system", False),
    ]


@pytest.mark.parametrize("zipped", [True, False])
def test_file_of_torch(tmp_path, zipped):
    value = {"w": torch.nn.Parameter(torch.zeros(2)), "net": torch.nn.Linear(2, 2)}
    torch.save(value, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    found = dict(mentioned_globals(tmp_path / "a.pth"))
    assert found["torch._utils._rebuild_parameter"]
    assert found["torch.FloatStorage"]
    assert found["torch.nn.modules.linear.Linear"] is False


STACKED = {
    "memo": (text("os") + b"q\0" + text("system") + b"q\1h\0h\1\x93", "os.system"),
    "memoize": (b"N\x94" + text("os") + b"\x94" + text("system") + b"\x94h\1h\2\x93", "os.system"),
    "short": (b"\x8c\2os\x8c\6system\x93", "os.system"),
    "escaped": (b"S'o\\q'\n" + text("system") + b"\x93", "?.system"),
    "old text": (b"S'os'\nVsystem\n\x93", "os.system"),
    "behind numbers": (text("os") + b"K\1" + text("system") + b"\x93", "?.system"),
    "computed": (text("os") + text("system") + b"N0\x93", "?.?"),
    "disguised": (text("torch") + text("Size") + b"00\x93", "?.?"),
    "inst": (b"(ios\nsystem\n", "os.system"),
    "beyond a stop": (b"N.N" + named("os", "system"), "os.system"),
    "then broken": (named("os", "system") + b"\xff", "os.system"),
}


@pytest.mark.parametrize(("code", "name"), STACKED.values(), ids=STACKED)
def test_names_are_followed_as_far_as_they_are_plain(mentions, code, name):
    assert mentions(crafted.archive(pickled(code))) == [Mention(name, False)]


def test_allowed_name_made_of_strings(mentions):
    code = text("torch") + text("Size") + b"\x93"
    assert mentions(crafted.archive(pickled(code))) == [Mention("torch.Size", True)]
    dotted = text("torch._utils") + text("_rebuild_tensor.x") + b"\x93"
    assert not mentions(crafted.archive(pickled(dotted)))[0].allowed


def test_every_pickle_of_an_archive(mentions):
    more = {"data/0": crafted.SIX_FLOATS, "more.pkl": pickled(named("os", "system"))}
    found = mentions(crafted.archive(state_dict(tensor()), more))
    assert set(found) == {*OURS, Mention("os.system", False)}


@pytest.mark.parametrize("member", ["sys_info", "pickle", "tensors", "storages"])
def test_every_member_of_a_tar(mentions, member):
    assert mentions(crafted.tar()) == [
        Mention("torch.FloatTensor", True),
        Mention("torch.FloatStorage", True),
    ]
    last = crafted.TAR_MEMBERS[member] + pickled(named("os", "system"))
    assert Mention("os.system", False) in mentions(crafted.tar(**{member: last}))
    long = pickled(text("x" * 100_000) + named("os", "system"))
    assert Mention("os.system", False) in mentions(crafted.tar(**{member: long}))


def test_safetensors_mention_nothing(mentions):
    assert mentions(crafted.safetensors({"w": crafted.entry(0, 24)})) == []


def test_too_many_opcodes_are_refused(mentions):
    with pytest.raises(CheckpointError, match="opcodes"):
        mentions(crafted.archive(b"N." * 300_000))


def test_hostile_corpus_is_walked(mentions, tmp_path):
    sentinel = tmp_path / "sentinel"
    found = set()
    for name, data, _ in hostile.corpus(sentinel):
        try:
            refused = {mention.name for mention in mentions(data) if not mention.allowed}
        except CheckpointError:
            continue
        if name.startswith(("global", "stack global", "payload", "inst", "tar global")):
            assert refused or "cut short" in name or "not utf-8" in name, name
        found |= refused
    assert {"os.system", "builtins.eval", "subprocess.Popen", "torch.hub.load"} <= found
    assert not sentinel.exists()
