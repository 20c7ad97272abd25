"""Several processes: Accelerate's configurations, FSDP of the frozen encoder, what is refused."""

import json
import os
import subprocess
import sys

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser

import adaptx as ax
from adaptx.errors import OptionError
from tests.conftest import ROOT, SAMPLE
from tests.training.test_train import fit

CONFIGS = sorted((ROOT / "recipes" / "accelerate").glob("*.yaml"))
FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_OFFLOAD_PARAMS": "false",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    "FSDP_ACTIVATION_CHECKPOINTING": "false",
}
QUIET = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "lo"}
RANKS = ["-m", "tests.training.ranks"]


def run(command, **environment):
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **QUIET, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def answers(processes):
    """What each process printed last."""
    said = [process.communicate(timeout=300) for process in processes]
    for process, (_, err) in zip(processes, said, strict=True):
        assert process.returncode == 0, err
    return [json.loads(line) for out, _ in said for line in out.splitlines() if line[:1] == "{"]


def ranks(world, folder, meeting, options, module=RANKS, **environment):
    """What each process says."""
    return answers(
        [
            run(
                [sys.executable, *module, folder, SAMPLE, json.dumps(options), meeting],
                RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world),
                LOCAL_WORLD_SIZE=str(world), **environment,
            )
            for rank in range(world)
        ]
    )  # fmt: skip


def alone(folder, options, module=RANKS):
    """What one process says."""
    return answers([run([sys.executable, *module, folder, SAMPLE, json.dumps(options)])])[0]


def same(found, wanted, rel=1e-4):
    for key in ("loss", "dev_loss"):
        losses = [[entry[key] for entry in one["history"]] for one in (found, wanted)]
        assert losses[0] == pytest.approx(losses[1], rel=rel)
    assert found["weights"] == pytest.approx(wanted["weights"], rel=10 * rel, abs=1e-6)


def test_every_configuration_has_only_keys_that_accelerate_knows():
    """The loader refuses an unknown key; of `fsdp_config`, the launcher knows the options."""
    assert [path.stem for path in CONFIGS] == ["cpu", "fsdp", "gpu_1", "gpus_8", "nodes_2"]
    options = vars(launch_command_parser().parse_args(["x.py"]))
    loaded = {path.stem: load_config_from_file(str(path)) for path in CONFIGS}
    for config in loaded.values():
        assert config.fsdp_config.keys() <= options.keys()
    kinds = {name: config.distributed_type.value for name, config in loaded.items()}
    assert kinds == {
        "cpu": "MULTI_GPU", "fsdp": "FSDP", "gpu_1": "NO", "gpus_8": "MULTI_GPU",
        "nodes_2": "MULTI_GPU",
    }  # fmt: skip
    assert {name: config.num_processes for name, config in loaded.items()} == {
        "cpu": 2, "fsdp": 8, "gpu_1": 1, "gpus_8": 8, "nodes_2": 16,
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cpu", "fsdp"])
def test_accelerate_launch_starts_two_processes(small_folders, name):
    config = ROOT / "recipes" / "accelerate" / f"{name}.yaml"
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config]
    launch += ["--num_processes", "2", "--mixed_precision", "no"]
    found = answers([run([*launch, *RANKS, small_folders["bert"], SAMPLE, '{"epochs": 1}'])])
    assert [rank["processes"] for rank in found] == [2, 2]
    share = 0.5 if name == "fsdp" else 1.0
    assert all(rank["parts"] == pytest.approx([share] * 2, abs=0.02) for rank in found)


@pytest.mark.slow
def test_fsdp_divides_the_encoder_and_trains_like_one_process(small_folders, tmp_path):
    wanted = alone(small_folders["bert"], {})
    found = ranks(2, small_folders["bert"], tmp_path / "meeting", {"checkpointing": True}, **FSDP)
    assert [rank["processes"] for rank in found] == [2, 2]
    for rank in found:
        same(rank, wanted)
        assert rank["parts"] == pytest.approx([0.5, 0.5], abs=0.02)
        assert rank["whole"] == wanted["whole"]  # the encoder given is what it was
    assert found[0]["weights"] == found[1]["weights"]


@pytest.mark.slow
@pytest.mark.parametrize("environment", [{}, FSDP], ids=["ddp", "fsdp"])
@pytest.mark.parametrize(
    ("options", "rel"), [({"precision": "bf16"}, 5e-3), ({"probe_first": True}, 1e-4)]
)
def test_bf16_and_a_probe_first_work_in_two_processes(
    small_folders, tmp_path, environment, options, rel
):
    options = {"accumulate": 2, "checkpointing": True} | options
    wanted = alone(small_folders["modernbert"], options)
    for rank in ranks(2, small_folders["modernbert"], tmp_path / "m", options, **environment):
        assert rank["processes"] == 2
        same(rank, wanted, rel)


@pytest.mark.slow
def test_more_processes_than_rows_of_a_batch_train_like_one(small_folders, tmp_path):
    """Batches of one row: one of the two processes has none, at every step."""
    options = {"rows": 30, "batch_size": 1, "dev": None, "epochs": 1}
    wanted = alone(small_folders["bert"], options)
    for rank in ranks(2, small_folders["bert"], tmp_path / "meeting", options):
        assert rank["processes"] == 2
        assert rank["history"][0]["loss"] == pytest.approx(wanted["history"][0]["loss"], rel=1e-4)
        assert rank["weights"] == pytest.approx(wanted["weights"], rel=1e-3, abs=1e-6)


@pytest.mark.slow
def test_fsdp_of_an_adapter_with_its_own_model_is_refused(small_folders, tmp_path):
    found = ranks(2, small_folders["bert"], tmp_path / "m", {"method": "full"}, **FSDP)
    assert len(found) == 2
    assert all("full brings a model of its own" in rank["error"] for rank in found)


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "DEEPSPEED.*fsdp.yaml"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "MEGATRON_LM"),
        (FSDP | {"FSDP_VERSION": "1"}, "fsdp_version: 2"),
        (FSDP | {"FSDP_OFFLOAD_PARAMS": "true"}, "fsdp_offload_params: false"),
        (FSDP | {"FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}, "loading: false"),
        (FSDP | {"FSDP_ACTIVATION_CHECKPOINTING": "true"}, "--checkpointing"),
    ],
)
def test_what_a_launcher_asks_for_in_vain_is_named(small, monkeypatch, environment, named):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(OptionError, match=named):
        fit(small)


def test_one_process_has_nothing_to_divide(small, monkeypatch):
    wanted = fit(small, epochs=1)
    for name, value in FSDP.items():
        monkeypatch.setenv(name, value)
    found = fit(small, epochs=1)
    assert found.facts.training["history"][0]["loss"] == wanted.facts.training["history"][0]["loss"]
    assert isinstance(found, ax.Adapter)
    assert os.environ["ACCELERATE_USE_FSDP"] == "true"
