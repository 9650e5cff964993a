import numpy as np

from nmt_ls.metrics.inputs import mean_of_ties


def test_mean_of_ties_by_hand():
    given = np.array([0.9, 0.1, 0.9, 0.5], np.float32)
    scores, means, counts = mean_of_ties(given, np.array([True, False, False, True]))
    np.testing.assert_allclose(scores, [0.1, 0.5, 0.9], rtol=1e-6)
    assert means.tolist() == [0, 1, 0.5]
    assert counts.tolist() == [1, 1, 2]
