"""Files of the ADM evaluator, and what is read off them, against NumPy, SciPy and torch-fidelity's features."""

from __future__ import annotations

import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from inception_file import SmallNetwork, write_random_inception
from PIL import Image
from scipy.spatial.distance import cdist
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

import bench.score
from bench.errors import BadInput
from bench.npz import NpzWriter, open_images, read_arrays, save_npz
from bench.places import Places
from bench.score import TITLES, Scores, score


def pictures(count: int, size: int, seed: int) -> np.ndarray:
    """uint8 [count, size, size, 3]: coarse patterns."""
    coarse = np.random.default_rng(seed).uniform(0, 255, (count, 4, 4, 3))
    return coarse.repeat(size // 4, 1).repeat(size // 4, 2).astype(np.uint8)


# -- files -----------------------------------------------------------------------------------------------------------


def test_a_written_file_is_what_numpy_reads(tmp_path: Path) -> None:
    images = pictures(23, 16, 0)
    path = tmp_path / "deep" / "x.npz"
    with NpzWriter(path, 23, 16, 16) as out:
        for start in range(0, 23, 5):
            assert not path.exists()                                        # not before it is complete
            out.add(start, images[start : start + 5])
    with np.load(path, allow_pickle=False) as file:                         # as the ADM evaluator does
        assert file.files == ["arr_0"] and file["arr_0"].dtype == np.uint8
        np.testing.assert_array_equal(file["arr_0"], images)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None                                    # checksums
    assert [p.name for p in path.parent.iterdir()] == ["x.npz"]
    save_npz(tmp_path / "tensor.npz", torch.from_numpy(images).permute(0, 3, 1, 2), block=7)
    save_npz(tmp_path / "array.npz", images)
    assert path.read_bytes() == (tmp_path / "tensor.npz").read_bytes() == (tmp_path / "array.npz").read_bytes()


def test_several_processes_write_one_file_in_any_order(tmp_path: Path) -> None:
    images, path = pictures(12, 8, 0), tmp_path / "x.npz"
    main = NpzWriter(path, 12, 8, 8)
    other = NpzWriter(path, 12, 8, 8, create=False)
    other.add(8, images[8:])
    main.add(5, images[5:8])
    main.add(0, images[:5])
    other.close()
    main.close(main.written + other.written)
    save_npz(tmp_path / "alone.npz", images)
    assert path.read_bytes() == (tmp_path / "alone.npz").read_bytes()


def test_an_incomplete_file_never_appears(tmp_path: Path) -> None:
    images, path = pictures(4, 8, 0), tmp_path / "x.npz"
    with pytest.raises(ValueError, match="3 of 4 images"), NpzWriter(path, 4, 8, 8) as out:
        out.add(0, images[:3])
    with pytest.raises(KeyError), NpzWriter(path, 4, 8, 8) as out:
        out.add(0, images)
        raise KeyError
    with NpzWriter(path, 4, 8, 8) as out:
        for wrong in (images.astype(np.float32), images[:, :4], images.transpose(0, 3, 1, 2)):
            with pytest.raises(ValueError, match="from 0 on"):
                out.add(0, wrong)
        with pytest.raises(ValueError, match="from 2 on"):
            out.add(2, images)
        out.add(0, images)
    assert [p.name for p in tmp_path.iterdir()] == ["x.npz"]
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(BadInput, match="cannot write"):
        NpzWriter(tmp_path / "file" / "x.npz", 4, 8, 8)


def test_neither_writing_nor_reading_holds_the_images(tmp_path: Path) -> None:
    block, path = pictures(16, 256, 0), tmp_path / "x.npz"                  # 3 MB of 50
    tracemalloc.start()
    with NpzWriter(path, 256, 256, 256) as out:
        for start in range(0, 256, 16):
            out.add(start, block)
    found = open_images(path)
    seen = sum(len(got) for got in found.blocks(16) if np.array_equal(got, block))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seen == 256 and most < 12e6


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_files_of_numpy_are_read_in_blocks(save, tmp_path: Path) -> None:
    images = pictures(7, 12, 0)
    save(tmp_path / "x.npz", images, mu=np.ones(3), other=np.zeros(2))
    found = open_images(tmp_path / "x.npz")
    assert (found.count, found.height, found.width) == (7, 12, 12)
    blocks = list(found.blocks(3))
    assert [len(b) for b in blocks] == [3, 3, 1]
    np.testing.assert_array_equal(np.concatenate(blocks), images)
    assert list(read_arrays(tmp_path / "x.npz", ("mu", "sigma"))) == ["mu"]


def test_what_is_no_file_of_images_is_named(tmp_path: Path) -> None:
    images, path = pictures(40, 16, 0), tmp_path / "x.npz"
    for wrong, said in ((images.astype(np.float32), "float32"), (images[..., :1], "1\\]"), (images[0], "16, 16, 3"),
                        (np.asfortranarray(images), "by columns")):
        np.savez(path, wrong)
        with pytest.raises(BadInput, match=f"x.npz.*{said}"):
            open_images(path)
    np.savez(path, images)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadInput, match=r"x.npz: no readable .npz file"):
        open_images(path)
    path.write_bytes(whole[:9000] + b"?" + whole[9001:])                    # a flipped byte: the checksum tells
    with pytest.raises(BadInput, match=r"x.npz: no readable .npz file.*CRC"):
        list(open_images(path).blocks(8))
    with pytest.raises(BadInput, match="no such file"):
        open_images(tmp_path / "absent.npz")
    np.savez(path, np.array([None]))
    with pytest.raises(BadInput, match=r"x.npz"):
        open_images(path)


# -- scores ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Places:
    folder = tmp_path_factory.mktemp("weights")
    write_random_inception(folder)
    return Places(results=folder, reports=folder, runs=folder, cache=folder / "cache", weights=folder)


@pytest.fixture
def small(places: Places, monkeypatch: pytest.MonkeyPatch) -> SmallNetwork:
    """A network of 12 pooled and 9 spatial features, so that matrix roots of 60 images exist."""
    network = SmallNetwork(12, 9)
    monkeypatch.setattr("bench.features.inception", lambda places=None: network)
    monkeypatch.setattr(bench.score, "POOLED", 12)
    monkeypatch.setattr(bench.score, "SPATIAL", 9)
    monkeypatch.setattr(bench.score, "STATISTICS", {"pooled": ("mu", "sigma", 12), "spatial": ("mu_s", "sigma_s", 9)})
    return network


def features(network: SmallNetwork, images: np.ndarray) -> list[np.ndarray]:
    """Of images of 299 pixels, which nothing resizes."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    return [part.double().numpy() for part in network((pixels - 128) / 128)]


def by_root(one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]) -> float:
    """The formula of the ADM evaluator, with SciPy's matrix square root."""
    root = scipy.linalg.sqrtm(one[1] @ other[1]).real
    return float(np.square(one[0] - other[0]).sum() + np.trace(one[1] + other[1] - 2 * root))


def moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return x.mean(0), np.cov(x, rowvar=False)


def share_inside(points: np.ndarray, centres: np.ndarray) -> float:
    reach = np.sort(cdist(centres, centres), axis=1)[:, 3]
    return float((cdist(points, centres) <= reach).any(1).mean())


def inception_score(logits: np.ndarray, split: int) -> float:
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    parts = [p[i : i + split] for i in range(0, len(p), split)]
    return float(np.mean([np.exp((q * (np.log(q) - np.log(q.mean(0)))).sum(1).mean()) for q in parts]))


def test_scores_equal_an_independent_computation(small: SmallNetwork, places: Places, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(bench.score, "SPLIT", 16)
    one, other = (np.ascontiguousarray(pictures(n, 300, seed)[:, :299, :299]) for n, seed in ((45, 0), (40, 1)))
    other = (other // 2 + one[:40] // 2).astype(np.uint8)
    save_npz(tmp_path / "reference.npz", one)
    np.savez_compressed(tmp_path / "samples.npz", other)
    seen = []
    found = score(tmp_path / "reference.npz", tmp_path / "samples.npz", places=places, batch_size=16,
                  device=torch.device("cpu"), progress=lambda *at: seen.append(at))
    x, y = features(small, one), features(small, other)
    wanted = {
        "fid": by_root(moments(x[0]), moments(y[0])), "sfid": by_root(moments(x[1]), moments(y[1])),
        "inception_score": inception_score(y[2], 16),
        "precision": share_inside(y[0], x[0]), "recall": share_inside(x[0], y[0]),
    }
    assert 0 < wanted["recall"] < 1 and wanted["fid"] > 0.01 and wanted["inception_score"] > 1.5
    assert found.values == pytest.approx(wanted, rel=1e-4) and not found.reasons
    assert seen[-1] == (85, 85) and (found.reference_images, found.sample_images) == (45, 40)
    assert [row[:2] for row in found.rows()] == [(TITLES[name], found.values[name]) for name in TITLES]

    # the same reference as statistics alone, or with 10 of its images beside them
    stored = dict(zip(("mu", "sigma", "mu_s", "sigma_s"), (*moments(x[0]), *moments(x[1])), strict=True))
    np.savez(tmp_path / "statistics.npz", **stored)
    alone = score(tmp_path / "statistics.npz", tmp_path / "samples.npz", places=places)
    assert alone.values == pytest.approx({k: v for k, v in wanted.items() if k not in ("precision", "recall")}, rel=1e-4)
    assert alone.reference_images == 0
    for name in ("precision", "recall"):
        assert "statistics.npz holds statistics alone" in alone.reasons[name]
    np.savez(tmp_path / "both.npz", one[:10], **stored)
    both = score(tmp_path / "both.npz", tmp_path / "samples.npz", places=places)
    assert both.values["fid"] == pytest.approx(wanted["fid"], rel=1e-4)     # of all 45, not of the 10
    assert both.values["recall"] == pytest.approx(share_inside(x[0][:10], y[0]))
    np.savez(tmp_path / "fid_only.npz", mu=stored["mu"], sigma=stored["sigma"])
    few = score(tmp_path / "fid_only.npz", tmp_path / "statistics.npz", places=places)
    assert few.values == {"fid": pytest.approx(0, abs=1e-9)} and set(few.reasons) == TITLES.keys() - {"fid"}
    assert "neither mu_s and sigma_s nor two images" in few.reasons["sfid"]
    assert all((value is None) == (reason is not None) for _, value, reason in few.rows())


def test_scores_of_the_real_graph_equal_torch_fidelitys_features(places: Places, tmp_path: Path) -> None:
    """Few images: the distance by singular values, NumPy alone. Folders and files of the same images agree."""
    one, other = pictures(6, 40, 0), pictures(5, 40, 1)
    for name, images in (("one", one), ("other", other)):
        (tmp_path / name).mkdir()
        for i, image in enumerate(images):
            Image.fromarray(image).save(tmp_path / name / f"{i}.png")
        save_npz(tmp_path / f"{name}.npz", images)
    found = score(tmp_path / "one.npz", tmp_path / "other", places=places, batch_size=4)
    weights = next(places.weights.glob("*.pth"))
    network = FeatureExtractorInceptionV3("x", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(weights))
    spatial: list[torch.Tensor] = []
    network.Mixed_6d.branch1x1.register_forward_hook(lambda *of: spatial.append(of[2]))
    x, y = ([*network(torch.from_numpy(images).permute(0, 3, 1, 2)), spatial.pop().permute(0, 2, 3, 1)[..., :7].flatten(1)]
            for images in (one, other))

    def distance(a: torch.Tensor, b: torch.Tensor) -> float:
        a, b = a.double().numpy(), b.double().numpy()
        u, v = ((z - z.mean(0)) / (len(z) - 1) ** 0.5 for z in (a, b))
        return (np.square(a.mean(0) - b.mean(0)).sum() + (u * u).sum() + (v * v).sum()
                - 2 * np.linalg.svd(u @ v.T, compute_uv=False).sum())

    wanted = {"fid": distance(x[0], y[0]), "sfid": distance(x[2], y[2]),
              "inception_score": inception_score(y[1].double().numpy(), 5000),
              "precision": share_inside(y[0].numpy(), x[0].numpy()), "recall": share_inside(x[0].numpy(), y[0].numpy())}
    assert found.values == pytest.approx(wanted, rel=1e-3)


def test_a_reference_that_cannot_be_one_is_named(small: SmallNetwork, places: Places, tmp_path: Path) -> None:
    save_npz(tmp_path / "x.npz", pictures(3, 8, 0))

    def tried(path: Path) -> Scores:
        return score(path, tmp_path / "x.npz", places=places)

    for arrays, said in (({"a": np.ones(2)}, "holds neither images .arr_0. nor statistics"),
                         ({"mu": np.ones(12)}, "sigma is missing"),
                         ({"mu": np.ones(5), "sigma": np.eye(5)}, r"mu is \[5\]; \[12\] finite numbers"),
                         ({"mu": np.full(12, np.nan), "sigma": np.eye(12)}, "finite")):
        np.savez(tmp_path / "bad.npz", **arrays)
        with pytest.raises(BadInput, match=f"bad.npz: {said}" if said != "finite" else said):
            tried(tmp_path / "bad.npz")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="no picture"):
        tried(tmp_path / "empty")
    (tmp_path / "empty" / "x.png").write_bytes(b"no picture")
    with pytest.raises(BadInput, match=r"x.png: cannot be read"):
        tried(tmp_path / "empty")
    few = tried(tmp_path / "x.npz")                                         # 3 images: no fourth neighbour
    assert "more than 3 images, got 3" in few.reasons["precision"] and few.values["fid"] == pytest.approx(0, abs=1e-9)
