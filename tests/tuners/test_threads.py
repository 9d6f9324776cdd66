"""One model with one adapter answers several threads at once, as in a web server."""

from concurrent.futures import ThreadPoolExecutor

import torch

THREADS, ROUNDS = 8, 4


def test_predictions_from_several_threads_are_those_of_one(backbone, case):
    model = case.attach(backbone, init_weights=False).eval()
    clouds = torch.randn(THREADS, 1, 128, 3, generator=torch.Generator().manual_seed(11))

    def predict(number: int) -> torch.Tensor:
        with torch.no_grad():
            return model(clouds[number % THREADS]).logits

    expected = [predict(number) for number in range(THREADS)]
    with ThreadPoolExecutor(THREADS) as pool:
        for number, logits in enumerate(pool.map(predict, range(THREADS * ROUNDS))):
            torch.testing.assert_close(logits, expected[number % THREADS], rtol=1e-5, atol=1e-5)
