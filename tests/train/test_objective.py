import torch

from train.objective import next_token_nats


def test_the_loss_is_the_sum_of_negative_log_probabilities_over_the_real_vocabulary() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(2, 5, 64), torch.randint(0, 50, (2, 5))
    expected = 0.0
    for row in range(2):
        for position in range(5):
            exponentials = logits[row, position, :50].double().exp()
            expected -= float((exponentials[targets[row, position]] / exponentials.sum()).log())
    assert abs(float(next_token_nats(logits, targets, 50)) - expected) < 1e-4


def test_padding_rows_of_the_vocabulary_get_no_gradient() -> None:
    logits = torch.randn(1, 3, 64, requires_grad=True)
    next_token_nats(logits, torch.zeros(1, 3, dtype=torch.int64), 50).backward()
    assert logits.grad is not None
    assert (logits.grad[..., 50:] == 0).all()
    assert (logits.grad[..., :50] != 0).any()


def test_half_precision_logits_are_summed_in_fp32() -> None:
    logits = torch.randn(4, 8, 64).bfloat16()
    assert next_token_nats(logits, torch.zeros(4, 8, dtype=torch.int64), 64).dtype == torch.float32
