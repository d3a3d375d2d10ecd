"""What a trainer would wait for, and nobody starts, is refused before any weights load."""

import pytest
from helpers_inputs import composed
from omegaconf import OmegaConf
from pytorch_lightning.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment
from pytorch_lightning.utilities import rank_zero_only

from perfusion.errors import UserError
from perfusion.learning.trainer import trainer_of

MET = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
TORCHRUN = MET | {"TORCHELASTIC_RUN_ID": "a", "WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0"}
SRUN = {
    "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1", "SLURM_NNODES": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0", "SLURM_JOB_NAME": "train",
}  # fmt: skip
RANKS = ("NODE_RANK", "GROUP_RANK", "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture
def trainer(monkeypatch, tmp_path):
    """trainer({variable: value}, key=value, ...): of the small machine that a test runs on."""

    def make(environment: dict[str, str], **keys):
        monkeypatch.setattr(rank_zero_only, "rank", 0)  # Lightning sets it, for the whole process
        for name in RANKS:
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return trainer_of(OmegaConf.merge(OmegaConf.masked_copy(composed("train"), ["trainer", "max_steps", "logger"]),
                                          {"trainer": {"precision": "32-true"} | keys}), tmp_path)  # fmt: skip

    OmegaConf.set_struct(composed("train"), False)
    yield make
    OmegaConf.set_struct(composed("train"), True)


@pytest.mark.parametrize("environment, keys, said", [
    ({}, {"num_nodes": 2}, "trainer.num_nodes=2 waits for other machines, .*; 1 is allowed, or start"),
    ({}, {"num_nodes": 2, "strategy": "ddp_spawn"}, "trainer.num_nodes=2 waits"),
    ({"NODE_RANK": "0"}, {"num_nodes": 2}, "or with MASTER_ADDR, MASTER_PORT and NODE_RANK set"),
    (MET, {"num_nodes": 2}, "trainer.num_nodes=2 waits"),
    ({"LOCAL_RANK": "0"}, {"devices": 2}, "trainer.devices=2 waits for processes that, as LOCAL_RANK=0 is set"),
    ({"NODE_RANK": "1"}, {"devices": 2}, "NODE_RANK=1 is of no machine of trainer.num_nodes=1; unset it"),
    ({"NODE_RANK": "x"}, {"devices": 2}, "cannot run here"),
    (TORCHRUN, {"num_nodes": 3}, "does not match the world size"),
    (SRUN, {"num_nodes": 3}, "number of nodes configured in SLURM"),
])  # fmt: skip
def test_processes_that_nobody_starts(trainer, environment, keys, said):
    with pytest.raises(UserError, match=said) as error:
        trainer(environment, **keys)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("environment, keys, kind", [
    ({}, {"devices": 2}, LightningEnvironment),
    (MET | {"NODE_RANK": "1"}, {"num_nodes": 2}, LightningEnvironment),
    (MET | {"LOCAL_RANK": "1", "NODE_RANK": "0"}, {"devices": 2}, LightningEnvironment),  # which Lightning's others are
    (TORCHRUN, {"num_nodes": 2}, TorchElasticEnvironment),
    (SRUN, {"num_nodes": 2}, SLURMEnvironment),
])  # fmt: skip
def test_processes_that_are_started(trainer, environment, keys, kind):
    assert type(trainer(environment, **keys).strategy.cluster_environment) is kind
