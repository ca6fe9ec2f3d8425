"""The table in docs/operations.md: every row of it is a test that makes it happen."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]

TESTS = {
    "the process is killed, the machine loses power": (
        "test_cli.py::test_after_a_kill_the_same_command_goes_on_with_what_there_is",
        "test_kill.py::test_a_run_that_is_killed_again_and_again_has_every_row_once_and_leaves_nothing",
    ),
    "it is killed in the midst of a save": (
        "test_lineage.py::test_leftovers_of_interrupted_writes_are_swept_unless_somebody_is_writing",
        "test_checkpoint.py::test_an_interrupted_write_leaves_the_former_checkpoint",
    ),
    "it is killed before its first checkpoint": (
        "test_lineage.py::test_auto_walks_past_a_run_that_died_before_its_first_checkpoint_and_says_so",
        "test_lineage.py::test_a_run_without_any_checkpoint_is_begun_again_and_is_no_run_of_its_own",
    ),
    "a file of a checkpoint is damaged": (
        "test_checkpoint.py::test_damage_is_refused_in_one_line_and_changes_nothing",
        "test_checkpoint.py::test_a_state_that_is_none_is_refused",
        "test_lineage.py::test_a_run_directory_means_its_newest_intact_checkpoint_and_damage_is_said",
    ),
    "the disk is full": (
        "test_full_disk.py::test_checkpoints_that_do_not_fit_are_told_and_the_run_ends_in_one_line",
        "test_full_disk.py::test_curves_that_cannot_be_written_are_told_once_and_hold_nothing_up",
        "test_full_disk.py::test_a_batch_that_cannot_be_recorded_leaves_nothing_behind",
        "test_group_spool.py::test_no_more_than_so_many_are_kept_and_none_when_there_is_no_room",
    ),
    "it is still full at the end, or no checkpoint is whole": (
        "test_full_disk.py::test_checkpoints_that_do_not_fit_are_told_and_the_run_ends_in_one_line",
        "test_checkpoint_writing.py::test_without_an_older_one_a_failed_checkpoint_ends_the_run",
    ),
    "the terminal goes away (ssh)": (
        "test_cli.py::test_an_interrupted_run_saves_and_can_be_resumed",
        "test_secrets.py::test_output_that_nobody_can_read_any_more_ends_nothing",
    ),
    "it is ended in an evaluation": (
        "test_resume.py::test_an_evaluation_that_was_broken_off_is_made_when_the_run_goes_on",
    ),
    "Ctrl-C again and again": (
        "test_cli.py::test_an_interrupted_run_saves_and_can_be_resumed",
        "test_legacy_parts.py::test_interrupts_are_held_however_often_they_come",
    ),
    "an update hangs and is broken off": (
        "test_legacy_trainer.py::test_an_update_that_hangs_can_be_broken_off_and_what_is_whole_is_named",
    ),
    "a browser dies": (
        "test_browser_processes.py::test_a_browser_that_dies_during_a_step_costs_its_episodes_and_no_step",
        "test_miniwob_acting.py::test_crashed_and_hanging_pages_are_replaced",
    ),
    "a trainer with a browser is killed": (
        "test_browser_processes.py::test_what_a_killed_trainers_browser_leaves_goes_with_the_next_run",
    ),
    "an environment's call never ends": (
        "test_stuck_environments.py::test_an_action_that_never_ends_costs_its_episode",
    ),
    "an episode never ends": ("test_agent.py::test_a_hanging_world_is_given_up",),
    "a call blocks its event loop": (
        "test_stuck_environments.py::"
        "test_an_action_that_blocks_its_loop_is_named_and_does_not_keep_the_run_from_ending",
    ),
    "a local GBox or the cloud is away": (
        "test_gbox_processes.py::test_a_service_that_is_away_for_a_while_costs_episodes_and_no_step",
    ),
    "a vLLM server dies, hangs, answers 429, 5xx or rubbish, cuts off": (
        "test_vllm_processes.py::test_a_run_outlives_servers_that_hang_are_slow_or_talk_rubbish",
        "test_vllm_engine.py::test_sampling_is_tried_again",
        "test_vllm_engine.py::test_a_server_that_comes_back_is_waited_for",
        "test_vllm_faults.py::test_rubbish_is_asked_for_again_until_patience_is_over",
    ),
    "one of several vLLM servers is gone": (
        "test_vllm_processes.py::test_a_run_outlives_servers_that_hang_are_slow_or_talk_rubbish",
        "test_vllm_faults.py::test_one_of_two_servers_that_hangs_is_left_out_and_taken_back_with_its_weights",
    ),
    "a server sees other tokens, or has other weights": (
        "test_vllm_engine.py::test_drift_is_counted_and_costs_the_episode",
        "test_vllm_engine.py::test_a_server_with_another_base_model_is_found_at_once",
    ),
    "a worker of `scheduler=...` dies, or its controller": (
        "test_cluster_run.py::test_a_dead_worker_ends_the_run_in_one_line_and_keeps_its_steps",
        "test_cluster_run.py::test_all_listen_on_this_machine_only_and_workers_do_not_outlive_a_killed_controller",
    ),
    "workers would listen on a network": ("test_cluster_config.py::test_workers_on_a_network_need_it_to_be_trusted",),
    "a server of ours would be open to others": (
        "test_vllm_serve.py::test_an_address_that_others_reach_needs_a_key",
        "test_local_gbox_cli.py::test_an_address_that_others_reach_needs_a_key_of_its_own",
    ),
    "a file of a model or adapter is damaged": (
        "test_damaged_models.py::test_json_of_a_model",
        "test_damaged_models.py::test_tensors_of_a_model_and_of_an_adapter",
    ),
    "a recorded batch, a report of a worker or other data is damaged, or was made to run code": (
        "test_loading_as_data.py::test_a_report_that_is_crafted_runs_nothing",
        "test_loading_as_data.py::test_no_module_loads_what_could_be_code",
        "test_trajectory_store.py::test_damaged_files_are_refused_with_one_line",
    ),
    "a run or a model has a name that is markup or a formula": (
        "test_escaping.py::test_reports_hold_names_as_text",
        "test_escaping.py::test_no_cell_of_a_csv_file_is_a_formula",
    ),
}


def rows_of_the_table() -> list[str]:
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    table = text.partition("| what | what you see | what to do |\n| --- | --- | --- |\n")[2].partition("\n\n")[0]
    return [re.split(r"(?<!\\)\|", line)[1].strip() for line in table.splitlines()]


def test_every_row_is_a_test_and_every_test_a_row() -> None:
    assert rows_of_the_table() == list(TESTS)


def test_the_tests_are_there() -> None:
    wanted: dict[str, set[str]] = {}
    for file, _, name in (test.partition("::") for tests in TESTS.values() for test in tests):
        wanted.setdefault(file, set()).add(name)
    for file, names in wanted.items():
        tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
        there = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert names <= there, f"{file}: {names - there}"
