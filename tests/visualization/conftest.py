import pytest


@pytest.fixture
def is_picture():
    """Whether a file is a PNG on which there is something to see, with a margin on every side."""
    image = pytest.importorskip("matplotlib.image")

    def check(path):
        pixels = image.imread(path)[..., :3]
        assert min(pixels.shape[:2]) > 150
        assert pixels.std() > 0.02
        # Nothing is cut off: what is drawn ends before the picture does.
        for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
            assert (edge > 0.99).all()
        return True

    return check
