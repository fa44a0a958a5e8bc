"""Where a process stands: a rank, a task of srun that starts ranks, or alone."""

from __future__ import annotations

import pytest

from weft.cli.ranks import RankOptions
from weft.errors import LayoutError, UserError
from weft.launch.elastic import Launch
from weft.launch.environment import RankPlace, current_rank, first_host, slurm_task
from weft.vocabulary.layout import Layout

TASK = {
    "SLURM_PROCID": "3",
    "SLURM_NTASKS": "4",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_JOB_ID": "20005",
}


@pytest.fixture
def environment(monkeypatch):
    variables: dict[str, str] = {}
    monkeypatch.setattr("os.environ", variables)
    return variables


def test_alone(environment):
    assert current_rank() == RankPlace(rank=0, world_size=1, local_rank=0)
    environment |= TASK | {"SLURM_NTASKS": "1"}
    assert slurm_task() is None


def test_a_script_in_a_task_of_srun_is_a_rank(environment):
    environment |= TASK
    for _ in range(2):  # the second time from the variables of torch.distributed
        assert current_rank() == RankPlace(rank=3, world_size=4, local_rank=1)
    assert (environment["MASTER_ADDR"], environment["MASTER_PORT"]) == ("gpu07", "20005")
    assert environment["RANK"] == "3"


@pytest.mark.parametrize("share", [1, 2])
def test_a_command_in_a_task_of_srun_starts_its_share_of_the_ranks(environment, share):
    environment |= TASK
    launch = RankOptions().launch_of(Layout(tp=4 * share))
    assert launch == Launch(
        ranks_per_node=share,
        num_nodes=4,
        node_rank=3,
        master_address="gpu07",
        master_port=20005,
        first_local_rank=share,
    )
    ranks = {"RANK": "7", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "WEFT_FIRST_LOCAL_RANK": "2"}
    environment |= ranks
    assert current_rank() == RankPlace(rank=7, world_size=8, local_rank=3)
    assert RankOptions().launch_of(Layout(tp=8)) is None


@pytest.mark.parametrize("layout", [Layout(), Layout(tp=2), Layout(tp=6)])
def test_ranks_that_the_tasks_cannot_share_are_refused(environment, layout):
    environment |= TASK
    with pytest.raises(LayoutError, match="the launcher started 4"):
        RankOptions().launch_of(layout)


def test_a_number_that_is_none_is_named(environment):
    environment |= TASK | {"SLURM_PROCID": "x"}
    with pytest.raises(UserError, match="SLURM_PROCID='x'"):
        current_rank()


@pytest.mark.parametrize(
    ("node_list", "host"),
    [("gpu[003-005,9],login", "gpu003"), ("n1,n2", "n1"), ("node-a", "node-a")],
)
def test_the_first_host_of_a_node_list(node_list, host):
    assert first_host(node_list) == host
