"""What an evaluation shows of itself."""

from finetooth.training.examination import in_words


def test_losses_and_shares_stand_below_one_another_within_80_columns():
    line = {"step": 200, "train_loss": 1.23456, "dev_loss": 2.0, "dev_perplexity": 7.389}
    assert in_words(line) == ["step 200  train_loss 1.235  dev_loss 2  dev_perplexity 7.389"]
    with_shares = in_words({**line, "exact_match": 0.5, "stop_rate": 1.0})
    assert with_shares == [*in_words(line), "          exact_match 50.0%  stop_rate 100.0%"]
    assert max(map(len, with_shares)) <= 80
