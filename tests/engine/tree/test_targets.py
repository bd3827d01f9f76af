"""Target tables: every target finds its readout in the tree."""

from __future__ import annotations

from ..heads.scored_prompts import branch, prompt, table_of


def test_the_table_finds_every_readout():
    # The trie: 1 2 3 | 4 5, 6; stream order is depth first, so 1 2 3 4 5 6.
    prompts = [
        prompt([branch(0, [1, 2, 3, 4, 5], [(3, 4), (5, 9)]), branch(1, [1, 2, 3, 6], [(3, 6), (4, 9)])])
    ]
    table = table_of(prompts)
    assert table.scored.tolist() == [2, 4, 5]
    assert table.branches.tolist() == [0, 0, 1, 1]
    assert table.rows.tolist() == [0, 1, 0, 2]
    assert table.token_ids.tolist() == [4, 9, 6, 9]
    assert table.num_branches == 2


def test_the_table_of_a_classifier_reads_the_token_itself():
    table = table_of([prompt([branch(0, [1, 2], [(1, None)]), branch(1, [1, 3, 4], [(2, None)])])])
    assert table.scored.tolist() == [1, 3]
    assert table.rows.tolist() == [0, 1]
    assert table.token_ids.tolist() == [-1, -1]


def test_a_branch_that_is_the_beginning_of_another_shares_its_readouts():
    table = table_of([prompt([branch(0, [1, 2], [(2, 9)]), branch(1, [1, 2, 3], [(2, 3), (3, 9)])])])
    assert table.scored.tolist() == [1, 2]
    assert table.rows.tolist() == [0, 0, 1]
