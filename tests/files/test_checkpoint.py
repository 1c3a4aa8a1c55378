"""Checkpoints: a resumed trainer continues bit for bit; what does not fit is refused before anything changes; nothing is half there."""

import copy
import json
import os
import shutil
from collections import Counter

import pytest
import torch

from conftest import make_policy, make_ragged
from minippo.files.atomic import sha256, write_json
from minippo.files.checkpoint import pack, unpack, verify_folder
from minippo.files.safetensors import read_safetensors, write_safetensors
from minippo.policy import GPT2WithValueHead
from minippo.ppo import PPOConfig, PPOTrainer


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


QUERIES = make_ragged([3, 5, 2, 4])
CONFIG = PPOConfig(learning_rate=1e-3, mini_batch_size=2, use_score_scaling=True, use_score_norm=True, target=0.1, horizon=50)


def trainer_of(seed: int = 0, schedule: bool = True, **kwargs) -> PPOTrainer:
    policy = make_policy(seed=seed, **kwargs)
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step)) if schedule else None
    return PPOTrainer(CONFIG, policy, optimizer=optimizer, lr_scheduler=scheduler)


def run(trainer, steps: int) -> list[dict]:
    history = []
    for _ in range(steps):
        responses = trainer.generate(QUERIES, max_new_tokens=6, eos_token_id=7, temperature=0.9)
        stats = trainer.step(QUERIES, responses, [float(r.sum() % 7) for r in responses], temperature=0.9)
        history.append({name: value for name, value in stats.items() if isinstance(value, float) and "time" not in name})
    return history


def test_a_resumed_trainer_continues_bit_for_bit(tmp_path):
    """Weights, Adam, kl_coef, running moments, schedule, sampling: two steps, save, two more; against a fresh trainer on another
    model that loads and does the last two."""
    straight, resumed = trainer_of(), trainer_of(seed=9)
    run(straight, 2)
    straight.save_checkpoint(tmp_path / "ck")
    resumed.load_checkpoint(tmp_path / "ck")
    assert run(straight, 2) == run(resumed, 2) and resumed.steps_done == 4
    assert same(straight.model, resumed.model) and same(straight.ref_model, resumed.ref_model)
    assert straight.kl_controller.value == resumed.kl_controller.value != 0.2
    assert vars(straight.moments) == vars(resumed.moments)
    assert torch.equal(straight.generator.get_state(), resumed.generator.get_state())


@pytest.mark.parametrize("mode", [torch.inference_mode, lambda: torch.device("meta")], ids=["inference_mode", "default device"])
def test_loading_within_a_callers_modes_changes_nothing(tmp_path, mode):
    """In inference mode loaded moments could never be changed again."""
    straight, resumed = trainer_of(), trainer_of(seed=9)
    run(straight, 1)
    with mode():
        straight.save_checkpoint(tmp_path / "ck")
        resumed.load_checkpoint(tmp_path / "ck")
    assert run(straight, 1) == run(resumed, 1) and same(straight.model, resumed.model)


def test_what_is_frozen_is_stored_once(tmp_path):
    """The embeddings are the reference's to the bit: a checkpoint has them once, and both models have them again."""
    def frozen(seed: int) -> PPOTrainer:
        policy = make_policy(seed=seed)
        policy.transformer.wte.requires_grad_(False)
        return PPOTrainer(CONFIG, policy)
    trainer, again = frozen(0), frozen(9)
    run(trainer, 1)
    trainer.save_checkpoint(tmp_path / "ck")
    stored = read_safetensors(tmp_path / "ck" / "trainer.safetensors")
    assert "ref_model.transformer.wte.weight" not in stored and "ref_model.transformer.wpe.weight" in stored
    again.load_checkpoint(tmp_path / "ck")
    assert same(again.model, trainer.model) and same(again.ref_model, trainer.ref_model) and run(again, 1) == run(trainer, 1)


def test_another_optimizer_or_scheduler_is_refused_before_anything_changes(tmp_path):
    trainer = trainer_of()
    run(trainer, 1)
    trainer.save_checkpoint(tmp_path / "ck")
    model = make_policy(seed=7)
    before = [p.clone() for p in model.parameters()]
    optimizers = [(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), "the optimizer: Adam in the checkpoint, SGD in this trainer"), (None, "the learning rate scheduler: LambdaLR in the checkpoint, None in this trainer")]
    for optimizer, message in optimizers:
        with pytest.raises(ValueError, match=message):
            PPOTrainer(PPOConfig(), model, optimizer=optimizer).load_checkpoint(tmp_path / "ck")
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_checkpoint_is_a_model_folder(tmp_path):
    trainer = trainer_of()
    run(trainer, 1)
    trainer.save_checkpoint(tmp_path / "ck")
    assert same(GPT2WithValueHead.from_pretrained(tmp_path / "ck", device="cpu"), trainer.model)
    assert {"manifest.json", "trainer.json", "trainer.safetensors", "config.json"} <= {p.name for p in (tmp_path / "ck").iterdir()}


def test_saving_twice_replaces_the_whole(tmp_path):
    trainer = trainer_of()
    trainer.save_checkpoint(tmp_path / "ck")
    run(trainer, 1)
    trainer.save_checkpoint(tmp_path / "ck")
    assert verify_folder(tmp_path / "ck")["step"] == 1 and [p.name for p in tmp_path.iterdir()] == ["ck"]


@pytest.mark.parametrize("kind", ["thesis", "checkpoint with a note", "another manifest", "broken manifest", "model folder"])
def test_a_folder_that_is_not_only_a_checkpoint_is_refused_with_all_its_files(tmp_path, kind):
    trainer, folder = trainer_of(), tmp_path / "mine"
    if kind == "checkpoint with a note":
        trainer.save_checkpoint(folder)
    folder.mkdir(exist_ok=True)
    (folder / "data").mkdir()
    (folder / "data" / "thesis.txt").write_text("years of work")
    if kind.endswith("manifest"):
        (folder / "manifest.json").write_text('{"files": {"data": {}, "index.html": {}}}' if kind.startswith("another") else "{")
    if kind == "model folder":
        trainer.model.save_pretrained(folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="'data'.*would be lost" if kind == "checkpoint with a note" else "neither empty nor a checkpoint"):
        trainer.save_checkpoint(folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_an_empty_folder_and_one_that_a_desktop_has_looked_at_are_taken(tmp_path):
    trainer = trainer_of()
    (tmp_path / "ck").mkdir()
    for step in (0, 1):
        trainer.save_checkpoint(tmp_path / "ck")
        (tmp_path / "ck" / ".DS_Store").write_text("")
        (tmp_path / "ck" / "config.json.tmp-minippo-01234567").write_text("left by a process that was killed")


@pytest.mark.parametrize("elsewhere", ["there", "other/disk"])
def test_a_link_stays_a_link_and_is_saved_to_and_loaded_from(tmp_path, elsewhere):
    """A checkpoint that was moved to another disk and linked back."""
    trainer = trainer_of()
    trainer.save_checkpoint(tmp_path / elsewhere)
    (tmp_path / "latest").symlink_to(tmp_path / elsewhere)
    for step in (1, 2):
        run(trainer, 1)
        trainer.save_checkpoint(tmp_path / "latest")
        assert (tmp_path / "latest").is_symlink() and verify_folder(tmp_path / elsewhere)["step"] == step
    resumed = trainer_of(seed=9)
    resumed.load_checkpoint(tmp_path / "latest")
    assert resumed.steps_done == 2 and same(resumed.model, trainer.model)
    assert {p.name for p in tmp_path.iterdir()} == {"latest", elsewhere.split("/")[0]}


def test_a_name_with_brackets_is_no_pattern(tmp_path):
    """ck[1] as a pattern means ck1, whose aside is not ours to take."""
    trainer = trainer_of()
    for name in ("ck[1]", "ck1"):
        trainer.save_checkpoint(tmp_path / name)
    os.rename(tmp_path / "ck[1]", tmp_path / "ck[1].old-minippo-01234567")
    os.rename(tmp_path / "ck1", tmp_path / "ck1.old-minippo-01234567")
    trainer.load_checkpoint(tmp_path / "ck[1]")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ck1.old-minippo-01234567", "ck[1]"]


def test_a_flipped_byte_is_found_in_any_file(tmp_path):
    trainer = trainer_of()
    trainer.save_checkpoint(tmp_path / "ck")
    before = [p.clone() for p in trainer.model.parameters()]
    for path in sorted((tmp_path / "ck").iterdir()):
        content = path.read_bytes()
        path.write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
        with pytest.raises(ValueError, match="manifest.json" if path.name == "manifest.json" else f"{path.name} is damaged"):
            trainer.load_checkpoint(tmp_path / "ck")
        path.write_bytes(content[:-3])
        with pytest.raises(ValueError):
            trainer.load_checkpoint(tmp_path / "ck")
        path.write_bytes(content)
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters()))
    trainer.load_checkpoint(tmp_path / "ck")


def test_a_checkpoint_of_another_model_changes_nothing(tmp_path):
    trainer_of(n_embd=16).save_checkpoint(tmp_path / "ck")
    trainer = trainer_of()
    before = [p.clone() for p in trainer.model.parameters()] + [trainer.generator.get_state()]
    with pytest.raises(ValueError, match="sizes"):
        trainer.load_checkpoint(tmp_path / "ck")
    assert all(torch.equal(a, b) for a, b in zip(before, [*trainer.model.parameters(), trainer.generator.get_state()]))


def test_no_checkpoint_is_said(tmp_path, policy):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        trainer_of().load_checkpoint(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="no manifest.json"):
        policy.save_pretrained(tmp_path / "model")
        trainer_of().load_checkpoint(tmp_path / "model")


def test_names_in_a_manifest_are_never_paths(tmp_path):
    trainer_of().save_checkpoint(tmp_path / "ck")
    manifest = json.loads((tmp_path / "ck" / "manifest.json").read_text())
    manifest["files"]["../../etc/passwd"] = {"bytes": 1, "sha256": "0"}
    (tmp_path / "ck" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="etc/passwd is damaged: it is not the file of the manifest"):
        trainer_of().load_checkpoint(tmp_path / "ck")


@pytest.mark.parametrize("existing", [False, True])
def test_a_crash_at_every_system_call_leaves_a_whole_checkpoint(tmp_path, existing):
    """A forked child dies at its n-th fsync, rename or replace, for every n until it lives: what is found afterwards verifies."""
    trainer, folder, died = trainer_of(), tmp_path / "ck", 0
    if existing:
        trainer.save_checkpoint(folder)
        run(trainer, 1)
    for n in range(1, 100):
        child = os.fork()
        if child == 0:
            calls = [0]
            for name in ("fsync", "rename", "replace"):
                def counted(*args, original=getattr(os, name)):
                    calls[0] += 1
                    if calls[0] == n:
                        os._exit(9)
                    return original(*args)
                setattr(os, name, counted)
            try:
                trainer.save_checkpoint(folder)
            finally:
                os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if existing:
            assert verify_folder(folder)["step"] in (0, 1)                  # the old one or the new one, whole
        elif folder.exists():
            verify_folder(folder)
            shutil.rmtree(folder)
        for rubbish in [*tmp_path.glob("*.tmp-*"), *tmp_path.glob("*.old-*")]:
            shutil.rmtree(rubbish)
        if code == 0:
            break
        died += 1
    assert code == 0 and died > 10


# --- types ----------------------------------------------------------------------------------------------------------------

def test_values_come_back_with_their_types(tmp_path):
    value = {1: "a", "1": None, (2, "x"): [True, 1, 1.0, float("inf")], "counter": Counter({3: 2}), "tuple": (1, (2, [3]), {}),
             "tensors": {1: torch.arange(3), "1": torch.ones(2), "deep": [torch.tensor(2.5)]}, "text": "a\ud800b"}
    tensors = {}
    text = json.dumps(pack(value, tensors, "state"))
    back = unpack(json.loads(text), tensors)
    assert repr(back) == repr(value) and len(tensors) == 3
    assert type(back["counter"]) is Counter and back["counter"].elements and [type(key) for key in back] == [type(key) for key in value]


def test_what_cannot_be_packed_is_named():
    with pytest.raises(TypeError, match="state.lr.0 is a object, which a checkpoint cannot hold"):
        pack({"lr": [object()]}, {}, "state")


def scheduled(scheduler, lr=1e-3, seed: int = 0) -> PPOTrainer:
    policy = make_policy(seed=seed)
    optimizer = torch.optim.Adam(policy.parameters(), lr=lr)
    return PPOTrainer(CONFIG, policy, optimizer=optimizer, lr_scheduler=scheduler(optimizer))


S = torch.optim.lr_scheduler
SCHEDULERS = {
    "milestones": lambda o: S.MultiStepLR(o, [1, 3, 3], 0.1), "step": lambda o: S.StepLR(o, 2), "cosine": lambda o: S.CosineAnnealingLR(o, 4),
    "restarts": lambda o: S.CosineAnnealingWarmRestarts(o, 2), "one cycle": lambda o: S.OneCycleLR(o, 0.1, total_steps=9),
    "cyclic": lambda o: S.CyclicLR(o, 1e-4, 1e-2, 2, cycle_momentum=False),
    "sequence": lambda o: S.SequentialLR(o, [S.ConstantLR(o, 0.1), S.ExponentialLR(o, 0.9)], [2]),
    "lambda": lambda o: S.LambdaLR(o, lambda step: 1 / (1 + step))}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_goes_on_after_a_resume(tmp_path, name):
    """Learning rates of six steps, against two, a checkpoint, and four of a fresh trainer; OneCycleLR moves betas as well."""
    straight, resumed = (scheduled(SCHEDULERS[name], seed=seed) for seed in (0, 9))

    def rates(trainer, steps):
        for _ in range(steps):
            trainer.optimizer.step()
            trainer.lr_scheduler.step()
            yield trainer.optimizer.param_groups[0]["lr"], trainer.optimizer.param_groups[0]["betas"]
    before = list(rates(straight, 2))
    straight.save_checkpoint(tmp_path / "ck")
    resumed.load_checkpoint(tmp_path / "ck")
    assert list(rates(resumed, 4)) == list(rates(straight, 4)) and before


def test_milestones_come_back_as_integers_and_decay(tmp_path):
    """MultiStepLR([1, 3, 3], 0.1): 1e-3 before its first step, 1e-4 from 1, 1e-6 from 3 on."""
    trainer, resumed = (scheduled(SCHEDULERS["milestones"], seed=seed) for seed in (0, 9))
    run(trainer, 2)
    trainer.save_checkpoint(tmp_path / "ck")
    resumed.load_checkpoint(tmp_path / "ck")
    assert resumed.lr_scheduler.milestones == Counter({1: 1, 3: 2}) and type(resumed.lr_scheduler.milestones) is Counter
    assert resumed.optimizer.param_groups[0]["lr"] == pytest.approx(1e-4)
    run(resumed, 1)
    assert resumed.optimizer.param_groups[0]["lr"] == pytest.approx(1e-6)


@pytest.mark.parametrize("schedule", [False, True])
def test_a_learning_rate_that_is_a_tensor(tmp_path, schedule):
    def trainer_with(lr, seed):
        policy = make_policy(seed=seed)
        optimizer = torch.optim.Adam(policy.parameters(), lr=torch.tensor(lr), fused=True)
        return PPOTrainer(CONFIG, policy, optimizer=optimizer, lr_scheduler=SCHEDULERS["step"](optimizer) if schedule else None)
    straight, resumed = trainer_with(1e-3, 0), trainer_with(1e-3 if not schedule else 1.0, 9)
    run(straight, 2)
    straight.save_checkpoint(tmp_path / "ck")
    resumed.load_checkpoint(tmp_path / "ck")
    assert isinstance(resumed.optimizer.param_groups[0]["lr"], torch.Tensor)
    assert run(straight, 2) == run(resumed, 2) and same(straight.model, resumed.model)


# --- state, not settings --------------------------------------------------------------------------------------------------

def plain_trainer(seed: int = 0, lr: float = 1e-3, **kwargs) -> PPOTrainer:
    config = PPOConfig(**{"learning_rate": lr, "mini_batch_size": 2, "adap_kl_ctrl": False, "use_score_scaling": True, "use_score_norm": True, **kwargs})
    return PPOTrainer(config, make_policy(seed=seed))


def test_what_a_checkpoint_holds(tmp_path):
    """State alone: no configuration, no temperature, no EOS of a sampling that is over."""
    trainer_of().save_checkpoint(tmp_path / "ck")
    state = unpack(json.loads((tmp_path / "ck" / "trainer.json").read_text()), read_safetensors(tmp_path / "ck" / "trainer.safetensors"))
    assert sorted(state) == ["extra", "identity", "kl_coef", "lr_scheduler", "moments", "optimizer", "shared", "steps_done"]


def test_settings_stay_those_of_the_trainer_that_loads(tmp_path):
    saved, loader = plain_trainer(lr=1e-3, init_kl_coef=0.3, adam_eps=1e-4), plain_trainer(9, lr=5e-5, init_kl_coef=0.05, adam_eps=1e-6)
    run(saved, 1)
    saved.save_checkpoint(tmp_path / "ck")
    loader.load_checkpoint(tmp_path / "ck")
    group = loader.optimizer.param_groups[0]
    assert (group["lr"], group["eps"], loader.kl_controller.value) == (5e-5, 1e-6, 0.05)
    assert same(saved.model, loader.model) and vars(saved.moments) == vars(loader.moments)
    assert all(torch.equal(x["exp_avg"], y["exp_avg"]) for x, y in zip(saved.optimizer.state.values(), loader.optimizer.state.values(), strict=True))


def test_an_optimizer_that_keeps_state_in_its_groups_gets_it_back(tmp_path):
    """As schedule-free optimizers do: what the constructor takes is a setting, a count beside it is state."""
    class Counting(torch.optim.SGD):
        def __init__(self, params, lr):
            super().__init__(params, lr=lr)
            self.param_groups[0]["k"] = 0

        def step(self, closure=None):
            self.param_groups[0]["k"] += 1
            return super().step(closure)
    trainers = []
    for seed, lr in ((0, 1e-3), (9, 1e-4)):
        policy = make_policy(seed=seed)
        trainers.append(PPOTrainer(CONFIG, policy, optimizer=Counting(policy.parameters(), lr)))
    run(trainers[0], 1)
    trainers[0].save_checkpoint(tmp_path / "ck")
    trainers[1].load_checkpoint(tmp_path / "ck")
    group = trainers[1].optimizer.param_groups[0]
    assert group["k"] == trainers[0].optimizer.param_groups[0]["k"] > 0 and group["lr"] == 1e-4


# --- what does not fit is refused, and nothing has changed ----------------------------------------------------------------

def everything_of(trainer) -> list:
    """All that a checkpoint restores, and the settings beside it, in a form that compares bit for bit."""
    state = [*trainer.model.state_dict().items(), *trainer.ref_model.state_dict().items(), ("generator", trainer.generator.get_state()),
             trainer.optimizer.state_dict(), vars(trainer.moments), trainer.kl_controller.value, trainer.steps_done,
             trainer.lr_scheduler and trainer.lr_scheduler.state_dict()]
    tensors = {}
    packed = pack(copy.deepcopy(state), tensors, "x")
    return [json.dumps(packed), *(x.numpy().tobytes() for x in tensors.values())]


def forge(folder, change) -> None:
    """Apply change(state, tensors) to a checkpoint, and make its manifest fit again."""
    tensors = read_safetensors(folder / "trainer.safetensors")
    state = unpack(json.loads((folder / "trainer.json").read_text()), tensors)
    rest = {name: x for name, x in tensors.items() if not name.startswith("state.")}
    change(state, rest)
    packed = pack(state, rest, "state")
    write_safetensors(folder / "trainer.safetensors", rest)
    write_json(folder / "trainer.json", packed)
    files = {p.name: {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in folder.iterdir() if p.name != "manifest.json"}
    write_json(folder / "manifest.json", {"files": files, "step": 0})


def refused(trainer, folder, message: str) -> None:
    before = everything_of(trainer)
    with pytest.raises(ValueError, match=message) as error:
        trainer.load_checkpoint(folder)
    assert str(folder) in str(error.value) and "nothing was loaded" in str(error.value) and "\n" not in str(error.value)
    assert everything_of(trainer) == before


def slot(state: dict, i: int = 0) -> dict:
    return state["optimizer"]["state"][i]


REF = "ref_model.transformer.wte.weight"
FORGERIES = {
    "generator short": (lambda s, t: t.update(generator=t["generator"][:100].clone()), "RNG state|generator|wrong size"),
    "generator missing": (lambda s, t: t.pop("generator"), "generator"),
    "generator junk": (lambda s, t: t.update(generator=torch.zeros_like(t["generator"])), "nvalid|generator"),
    "generator of another type": (lambda s, t: t.update(generator=t["generator"].float()), "generator|ByteTensor|RNG"),
    "moments null": (lambda s, t: s.update(moments=None), "NoneType"),
    "moments without a count": (lambda s, t: s["moments"].pop("count"), "'count'"),
    "moments NaN": (lambda s, t: s["moments"].update(var=float("nan")), "var is nan"),
    "variance negative": (lambda s, t: s["moments"].update(var=-1.0), "var is -1.0"),
    "reference NaN": (lambda s, t: t[REF].fill_(torch.nan), "reference's transformer.wte.weight"),
    "reference int32": (lambda s, t: t.update({REF: t[REF].int()}), "reference's transformer.wte.weight is .* torch.int32"),
    "reference missing": (lambda s, t: t.pop(REF), "ref_model.transformer.wte.weight"),
    "reference misshapen": (lambda s, t: t.update({REF: t[REF][:-1].clone()}), r"reference's transformer.wte.weight is \(60, 32\)"),
    "kl_coef NaN": (lambda s, t: s.update(kl_coef=float("nan")), "kl_coef is nan"),
    "kl_coef a text": (lambda s, t: s.update(kl_coef="0.2"), "invalid data type 'str'"),
    "steps_done negative": (lambda s, t: s.update(steps_done=-1), "steps_done is -1"),
    "steps_done half": (lambda s, t: s.update(steps_done=1.5), "steps_done is 1.5"),
    "Adam's moment of another shape": (lambda s, t: slot(s).update(exp_avg=torch.zeros(3, 3)), r"exp_avg of parameter 0 is \(3, 3\)"),
    "Adam's moment of another type": (lambda s, t: slot(s).update(exp_avg=slot(s)["exp_avg"].double()), "exp_avg of parameter 0"),
    "Adam's moment NaN": (lambda s, t: slot(s)["exp_avg_sq"].fill_(torch.nan), "exp_avg_sq of parameter 0"),
    "Adam's moment one number": (lambda s, t: slot(s).update(exp_avg=torch.tensor(0.0)), r"exp_avg of parameter 0 is \(\)"),
    "Adam's count of another shape": (lambda s, t: slot(s).update(step=torch.ones(3)), "step|shape"),
    "Adam's moment null": (lambda s, t: slot(s).update(exp_avg=None), "NoneType"),
    "Adam's moment missing": (lambda s, t: slot(s).pop("exp_avg"), "'exp_avg'"),
    "Adam's parameter too many": (lambda s, t: s["optimizer"]["state"].update({28 + 2: slot(s)}), "30"),
    "Adam's parameter negative": (lambda s, t: s["optimizer"]["state"].update({-1: slot(s)}), "-1"),
    "groups missing": (lambda s, t: s["optimizer"].update(param_groups=[]), "zip|argument"),
    "learning rate NaN": (lambda s, t: s["optimizer"]["param_groups"][0].update(lr=float("nan")), "lr is nan"),
    "betas of texts": (lambda s, t: s["optimizer"]["param_groups"][0].update(betas=("a", "b")), "nothing"),
    "betas of another shape": (lambda s, t: s["optimizer"]["param_groups"][0].update(betas=0.9), "betas is 0.9"),
    "betas that grow": (lambda s, t: s["optimizer"]["param_groups"][0].update(betas=(0.9, 1.5)), r"betas is \(0.9, 1.5\)"),
    "scheduler of another type of number": (lambda s, t: s["lr_scheduler"].update(base_lrs=True), "scheduler's numbers .*base_lrs"),
    "scheduler of other numbers": (lambda s, t: s["lr_scheduler"].pop("last_epoch"), "scheduler's numbers"),
    "scheduler junk": (lambda s, t: s["lr_scheduler"].update(last_epoch=7, lr_lambdas=[{"a": 1}] * 3), "nothing"),
    **{f"no {key}": (lambda s, t, key=key: s.pop(key), key) for key in
       ("steps_done", "kl_coef", "moments", "optimizer", "lr_scheduler", "identity", "extra")},
    **{f"no identity of {key}": (lambda s, t, key=key: s["identity"].pop(key), f"{key}: None in the checkpoint") for key in
       ("the model's n_head", "the reference's n_head", "the optimizer", "the learning rate scheduler", "the optimizer's index of v_head.bias")}}


@pytest.fixture(scope="module")
def genuine(tmp_path_factory):
    """A checkpoint, and another trainer that has made a step of its own; nothing that is refused changes it."""
    saved, trainer = trainer_of(), trainer_of(seed=9)
    run(saved, 1)
    run(trainer, 1)
    folder = tmp_path_factory.mktemp("genuine") / "ck"
    saved.save_checkpoint(folder)
    return folder, trainer


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_state_is_refused_and_nothing_has_changed(genuine, tmp_path, name):
    """The manifest fits: whoever wrote it computed the hashes anew."""
    folder, trainer = genuine
    shutil.copytree(folder, tmp_path / "ck")
    change, message = FORGERIES[name]
    forge(tmp_path / "ck", change)
    refused(trainer, tmp_path / "ck", message)


def test_a_forgery_without_a_fault_is_loaded(tmp_path):
    """forge itself breaks nothing."""
    saved, trainer = trainer_of(), trainer_of(seed=9)
    run(saved, 1)
    saved.save_checkpoint(tmp_path / "ck")
    forge(tmp_path / "ck", lambda state, tensors: None)
    trainer.load_checkpoint(tmp_path / "ck")
    assert everything_of(trainer) == everything_of(saved)


def test_flags_of_a_forged_group_do_not_count(tmp_path):
    saved, trainer = trainer_of(), trainer_of(seed=9)
    run(saved, 1)
    saved.save_checkpoint(tmp_path / "ck")
    forge(tmp_path / "ck", lambda state, tensors: state["optimizer"]["param_groups"][0].update(maximize=True, amsgrad=True))
    trainer.load_checkpoint(tmp_path / "ck")
    assert not trainer.optimizer.param_groups[0]["maximize"] and not trainer.optimizer.param_groups[0]["amsgrad"]


def test_other_heads_are_refused(tmp_path):
    """Every tensor has the same shape with 2 heads and with 4; the logits have not the same values."""
    trainer_of(n_head=2).save_checkpoint(tmp_path / "ck")
    refused(trainer_of(n_head=4), tmp_path / "ck", "the model's n_head: 2 in the checkpoint, 4 in this trainer")


def test_a_reference_with_other_heads_is_refused(tmp_path):
    def trainer(heads):
        return PPOTrainer(CONFIG, make_policy(), make_policy(n_head=heads))
    trainer(2).save_checkpoint(tmp_path / "ck")
    refused(trainer(4), tmp_path / "ck", "the reference's n_head: 2 in the checkpoint, 4")


def test_other_frozen_parameters_are_refused_by_name(tmp_path):
    """wte frozen, then wpe frozen: as many parameters, and Adam would read the moments of one as those of the other."""
    def trainer(frozen):
        policy = make_policy()
        getattr(policy.transformer, frozen).requires_grad_(False)
        return PPOTrainer(CONFIG, policy)
    saved = trainer("wte")
    run(saved, 1)
    saved.save_checkpoint(tmp_path / "ck")
    refused(trainer("wpe"), tmp_path / "ck", r"the optimizer's index of transformer.wpe.weight: \(0, 0\) in the checkpoint, None in this trainer")


def test_amsgrad_without_its_moments_is_refused(tmp_path):
    def trainer(amsgrad):
        policy = make_policy()
        return PPOTrainer(CONFIG, policy, optimizer=torch.optim.Adam(policy.parameters(), amsgrad=amsgrad))
    saved = trainer(False)
    run(saved, 1)
    saved.save_checkpoint(tmp_path / "ck")
    refused(trainer(True), tmp_path / "ck", "max_exp_avg_sq")


@pytest.mark.parametrize("optimizer", ["SGD", "RMSprop", "NAdam", "Rprop", "ASGD", "Adafactor"])
def test_torchs_other_optimizers_come_back(tmp_path, optimizer):
    kind = getattr(torch.optim, optimizer)
    kwargs = {"momentum": 0.9} if optimizer in ("SGD", "RMSprop") else {}

    def trainer(seed):
        policy = make_policy(seed=seed)
        return PPOTrainer(CONFIG, policy, optimizer=kind(policy.parameters(), lr=1e-4, **kwargs))
    saved, resumed = trainer(0), trainer(9)
    run(saved, 1)
    saved.save_checkpoint(tmp_path / "ck")
    resumed.load_checkpoint(tmp_path / "ck")
    assert run(saved, 1) == run(resumed, 1) and same(saved.model, resumed.model)


def test_an_extra_of_the_callers_own_comes_back_with_its_types(tmp_path):
    from minippo.files.checkpoint import load_state, save_state
    trainer = trainer_of()
    save_state(tmp_path / "ck", trainer, {"seen": {1: (2, 3)}, "x": torch.ones(2)})
    extra = load_state(tmp_path / "ck", trainer_of())
    assert extra["seen"] == {1: (2, 3)} and torch.equal(extra["x"], torch.ones(2))


def test_a_checkpoint_of_before_is_refused_in_words(tmp_path):
    trainer_of().save_checkpoint(tmp_path / "ck")
    write_json(tmp_path / "ck" / "trainer.json", {"config": {}, "steps_done": 0})
    files = {p.name: {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in (tmp_path / "ck").iterdir() if p.name != "manifest.json"}
    write_json(tmp_path / "ck" / "manifest.json", {"files": files, "step": 0})
    refused(trainer_of(), tmp_path / "ck", "of another version")


def test_a_manifest_that_leaves_files_out_is_refused(tmp_path):
    trainer_of().save_checkpoint(tmp_path / "ck")
    manifest = json.loads((tmp_path / "ck" / "manifest.json").read_text())
    del manifest["files"]["trainer.safetensors"]
    (tmp_path / "ck" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="manifest.json is damaged .*'trainer.safetensors'"):
        trainer_of().load_checkpoint(tmp_path / "ck")
