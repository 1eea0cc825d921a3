"""A model directory carries everything; the Hub is reached politely or not at all."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

import setr
from setr.cli import main
from setr.config import Config, ModelConfig
from setr.errors import FAILED, OK, SetrError
from setr.export import metadata
from setr.hub import from_pretrained, push_to_hub, save_pretrained
from setr.labels import Labels
from setr.model import create_model
from setr.model_info import ModelInfo, licence_of, with_metrics
from setr.protocols import Protocol
from setr.training.build import build_info
from setr.training.named_config import named_config
from setr.training.preparation import _origin
from setr.training.runfolder import RunFolder
from setr.weight_files.licences import offered_licence, weights_licence, weights_repository
from setr.weight_files.pretrained import load_encoder, require_weights
from tests.conftest import tiny_config, tiny_model
from tests.models import assert_comes_back

INFO = ModelInfo(
    labels=Labels(("road", "sky", "car", "tree", "sign"), label_map={0: 255, 1: 0, 7: 4}),
    mean=(0.5, 0.4, 0.3),
    protocol=Protocol(window=(64, 48), stride=(32, 24), short_side=100),
    recipe="my_recipe",
    metrics={"val mIoU": 0.71},
    crop_size=(64, 48),
    pretrained="augreg_in21k",
    command="setr train my_recipe",
)


MODEL = ("README.md", "config.json", "model.safetensors")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_pretrained(tmp_path / "model", tiny_model("mla"), INFO)
    return tmp_path / "model"


def test_everything_comes_back(folder):
    assert {path.name for path in folder.iterdir()} == {*MODEL}
    model, info = from_pretrained(folder)
    assert info == INFO
    assert not model.training
    assert model.arguments == tiny_model("mla").arguments


@pytest.mark.parametrize("name", ["setr.hub.save_file", "setr.hub.json_bytes"])
def test_a_model_that_cannot_be_written_whole_leaves_the_one_before(folder, monkeypatch, name):
    """Weights of the new one beside classes of the old one would be a model that nobody trained."""

    def full(*_: object) -> bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(name, full)
    torch.manual_seed(1)
    with pytest.raises(SetrError, match=f"^{re.escape(str(folder))}.*: cannot write: .*No space"):
        save_pretrained(folder, tiny_model("pup"), INFO, before=lambda: pytest.fail("not written"))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_process_killed_between_the_files_of_a_model_leaves_it_whole(folder, tmp_path):
    """Weights that are new beside a description that is old would be adjusted twice, say."""
    new = dataclasses.replace(INFO, metrics={"val mIoU": 0.72})
    model = tiny_model("mla")
    with torch.no_grad():
        model.decoder.classifier.bias += 1
    save_pretrained(tmp_path / "new", model, new)
    left = folder / ".saving-killed"
    left.mkdir()
    for name in ("config.json", "README.md", ".lock"):
        (left / name).touch()
    (left / "model.safetensors").touch()  # cut off: nothing in it is used
    assert from_pretrained(folder)[1] == INFO
    (left / "model.safetensors").unlink()
    for name, place in (("model.safetensors", folder), ("config.json", left), ("README.md", left)):
        (tmp_path / "new" / name).rename(place / name)
    found, info = from_pretrained(folder)
    assert info == new
    assert torch.equal(found.decoder.classifier.bias, model.decoder.classifier.bias)
    save_pretrained(folder, found, info)
    assert {path.name for path in folder.iterdir()} == {*MODEL}


def test_a_signal_between_the_files_of_a_model_waits_for_the_rest(folder, monkeypatch):
    new, replace, begun = dataclasses.replace(INFO, metrics={"val mIoU": 0.72}), os.replace, []

    def struck(*paths: Path) -> None:
        replace(*paths)
        if not begun:
            begun.append(paths)
            raise KeyboardInterrupt

    def before() -> None:
        assert from_pretrained(folder)[1] == INFO
        monkeypatch.setattr("os.replace", struck)

    with pytest.raises(KeyboardInterrupt):
        save_pretrained(folder, tiny_model("mla"), new, before=before)
    assert from_pretrained(folder)[1] == new
    assert {path.name for path in folder.iterdir()} == {*MODEL}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_no_description(folder):
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    with pytest.raises(SetrError, match=r"config\.json: is no file$"):
        from_pretrained(folder)


def test_an_error_of_the_machine_is_none_of_the_model(folder, monkeypatch):
    def fail(**_: object) -> None:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr("setr.weight_files.mapped_model.SETR", fail)
    with pytest.raises(SetrError, match=r"^No usable temporary directory"):
        from_pretrained(folder)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="such names are Linux's")
def test_a_folder_whose_name_is_no_text(tmp_path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/mod\xe8le"))
    save_pretrained(folder, tiny_model("mla"), INFO)
    assert from_pretrained(folder)[1] == INFO
    assert setr.load_weights(tiny_model("mla"), folder / "model.safetensors").resized == []


def test_figures_of_pixels_may_be_arrays_and_classes_are_as_many_as_the_models(tmp_path):
    mean, std = np.full(3, 0.5, np.float32), torch.full((3,), 0.25)
    info = dataclasses.replace(INFO, mean=mean, std=std, metrics={"mIoU": np.float32(0.5)})
    save_pretrained(tmp_path, tiny_model("mla"), info)
    assert from_pretrained(tmp_path)[1] == info
    fewer = ModelInfo(labels=Labels(("road", "sky")))
    for use in (partial(save_pretrained, tmp_path), setr.Predictor):
        with pytest.raises(SetrError, match="labels of 2 classes: the model has 5; give"):
            use(tiny_model("mla"), fewer)
    with pytest.raises(SetrError, match=r"labels: \['road', 'sky'\]: give a setr.labels.Labels"):
        ModelInfo(labels=["road", "sky"])


@pytest.mark.parametrize(
    "wrap",
    [
        partial(torch.compile, backend="eager"),
        torch.nn.DataParallel,
        torch.optim.swa_utils.AveragedModel,
    ],
)
def test_a_wrapped_model_is_saved_as_it_is(tmp_path, wrap):
    model = tiny_model("mla")
    save_pretrained(tmp_path, wrap(model), INFO)
    found = from_pretrained(tmp_path)[0].state_dict()
    assert all(torch.equal(found[name], value) for name, value in model.state_dict().items())


def test_what_could_not_be_opened_is_not_saved(tmp_path):
    model = tiny_model("mla")
    model.decoder = torch.nn.Conv2d(16, 5, 1)
    with pytest.raises(SetrError, match=r"decoder.*: is not as the model's arguments build it"):
        save_pretrained(tmp_path / "own", model, INFO)
    with pytest.raises(SetrError, match=r"Linear: give a model of setr\.create_model"):
        save_pretrained(tmp_path / "own", torch.nn.Linear(2, 2), INFO)
    with pytest.raises(SetrError, match=r"info is a list: give setr\.ModelInfo\(labels="):
        save_pretrained(tmp_path / "own", tiny_model("mla"), ["road", "sky"])
    assert not (tmp_path / "own").exists()
    (tmp_path / "file").touch()
    with pytest.raises(SetrError, match="cannot make this folder: File exists"):
        save_pretrained(tmp_path / "file", tiny_model("mla"), INFO)


def test_all_files_are_readable_alike(folder):
    assert len({p.stat().st_mode for p in folder.iterdir()}) == 1


def test_card_names_figures_licence_and_command(folder):
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: setr\n")
    for words in (
        " on `vit_tiny_patch16_224`, trained on crops",
        "| val mIoU | 0.71 |",
        "`augreg_in21k` (licence of these weights: apache-2.0)",
        "setr train my_recipe",
        "crops of 64x48",
        "windows of 64x48, step 32x24",
        "road, sky, car, tree, sign",
    ):
        assert words in card, words


def test_the_hub_reads_the_head_of_the_card(tmp_path):
    """As its client does, which takes it apart; an upload with a wrong head would be refused."""
    info = dataclasses.replace(
        INFO,
        recipe="SETR: on 'x'",
        metrics={"val mIoU": np.float32(0.5), "step": 7, "val": "x", "a mIoU": None},
        base_model="timm/vit_tiny_patch16_224.augreg_in21k",
        data="someone/scenes",
    )
    save_pretrained(tmp_path, tiny_model("mla"), info)
    head = ModelCard((tmp_path / "README.md").read_text()).data
    assert (head.library_name, head.pipeline_tag) == ("setr", "image-segmentation")
    assert (head.base_model, head.datasets) == ([info.base_model], ["someone/scenes"])
    (result,) = head.eval_results
    assert (result.dataset_name, result.dataset_split) == ("someone/scenes", "val")
    assert (result.metric_type, result.metric_value) == ("mean_iou", 0.5)
    assert head.model_name == "SETR: on 'x'"


def test_data_that_are_not_on_the_hub_are_named_with_the_figures_only(tmp_path):
    save_pretrained(tmp_path, tiny_model("mla"), dataclasses.replace(INFO, data="photos"))
    head = ModelCard((tmp_path / "README.md").read_text()).data
    assert head.datasets is None
    assert head.base_model is None
    assert head.eval_results[0].dataset_name == "photos"
    save_pretrained(tmp_path, tiny_model("mla"), INFO)  # figures on unknown data
    assert ModelCard((tmp_path / "README.md").read_text()).data.eval_results is None


def test_figures_of_other_data_are_not_told_as_those_of_the_first():
    info = dataclasses.replace(INFO, data="photos")
    same, other = (with_metrics(info, {"test mIoU": 0.5}, name) for name in ("photos", "scans"))
    assert same.data == "photos"
    assert other.data is None
    assert same.metrics == other.metrics == {"val mIoU": 0.71, "test mIoU": 0.5}


def test_a_run_from_python_names_its_data_and_how_to_repeat_it(tmp_path):
    config = tiny_config(tmp_path / "run")
    train, val = (setr.open_dataset("scenes:8", split) for split in ("train", "val"))
    setr.train(config, data=(train, val), augment=lambda image, mask: (image, mask))
    card = Path(config.out, "README.md").read_text()
    assert 'setr.train("config.yaml", data=(train, val), augment=augment)' in card
    assert "Data: `scenes`." in card
    other = dataclasses.replace(val, name="others")  # figures on it are none of the training data
    setr.train(config, data=(train, other), overwrite=True)
    assert from_pretrained(config.out)[1].data is None
    assert "setr train config.yaml" not in card


def test_licences_differ():
    assert offered_licence("vit_small_patch16_dinov3") == "dinov3-license"
    assert offered_licence("eva02_tiny_patch14_224") == "mit"


BASE = "vit_base_patch16_384"


@pytest.mark.parametrize(
    ("source", "licence"),
    [
        ("augreg_in21k", "apache-2.0"),
        ("mae", "cc-by-nc-4.0"),
        ("timm/vit_base_patch16_224.mae", "cc-by-nc-4.0"),
        ("timm/vit_base_patch16_224.mae@main", "cc-by-nc-4.0"),
        ("weights/vit_base_patch16_224.mae.safetensors", "cc-by-nc-4.0"),
        ("mae.pth", "unknown (timm's weights for this encoder: apache-2.0, cc-by-nc-4.0)"),
        (None, None),
    ],
)
def test_a_licence_is_that_of_the_weights_and_not_of_the_encoder(source, licence):
    assert weights_licence(BASE, source) == licence


@pytest.mark.parametrize(
    ("source", "repository"),
    [
        ("augreg_in21k", "timm/vit_base_patch16_224.augreg_in21k"),
        ("deit", "timm/deit_base_patch16_384.fb_in1k"),
        ("timm/vit_base_patch16_224.mae@main", "timm/vit_base_patch16_224.mae"),
        ("hf-hub:someone/model", "someone/model"),
        ("https://huggingface.co/someone/model/resolve/main/model.bin", "someone/model"),
        ("https://example.org/someone/model/resolve/main/model.bin", None),
        ("weights/vit_base_patch16_224.mae.safetensors", "timm/vit_base_patch16_224.mae"),
        ("mae.pth", None),
        (None, None),
    ],
)
def test_a_base_model_is_the_repository_of_the_weights(source, repository):
    assert weights_repository(BASE, source) == repository


def test_the_licence_of_the_first_weights_goes_from_run_to_run(tmp_path, monkeypatch):
    """Also where a run is resumed without the model that it started from, and into exports."""
    first, config = tmp_path / "first", tiny_config(tmp_path / "second", eval_every=1)
    made = create_model("setr_naive_nano", num_classes=5, img_size=64, channels=16, taps=(1, 2))
    base = "timm/vit_base_patch16_224.mae"
    given = dataclasses.replace(
        INFO, pretrained="mae", licence="cc-by-nc-4.0", base_model=base, data="elsewhere"
    )
    save_pretrained(first, made, given)
    model = dataclasses.replace(config.model, pretrained=str(first))
    config = dataclasses.replace(config, model=model)
    for steps, resume in ((2, False), (3, True)):
        steps = dataclasses.replace(config.train, steps=steps)
        setr.train(dataclasses.replace(config, train=steps), resume=resume)
        model, info = from_pretrained(config.out)
        assert (info.pretrained, info.licence) == ("first", "cc-by-nc-4.0")
        assert (info.base_model, info.data) == (base, "scenes")
        card = Path(config.out, "README.md").read_text()
        assert "`first` (licence of these weights: cc-by-nc-4.0)" in card
        assert json.loads(metadata(model, info, "fp32", "logits")["licence"]) == "cc-by-nc-4.0"
        shutil.rmtree(first, ignore_errors=True)


def test_a_hybrid_names_the_weights_of_its_resnet_too(tmp_path):
    model = ModelConfig("hybrid_base", pretrained="mae", pretrained_resnet="gluon_in1k")
    config = Config(model=model)
    licence, base = _origin(config, RunFolder(tmp_path / "run"))
    assert licence == "cc-by-nc-4.0; apache-2.0"
    info = dataclasses.replace(build_info(config, INFO.labels), licence=licence, base_model=base)
    save_pretrained(tmp_path, tiny_model("mla"), info)
    card = (tmp_path / "README.md").read_text()
    assert f"`mae; gluon_in1k` (licence of these weights: {licence})" in card
    assert ModelCard(card).data.base_model == [
        "timm/vit_base_patch16_224.mae", "timm/resnet50c.gluon_in1k",
    ]  # fmt: skip
    alone = config.replace({"model.pretrained": None})
    assert _origin(alone, RunFolder(tmp_path / "run"))[0] == "apache-2.0"


def test_a_model_trained_from_random_weights_has_nobodys_licence(tmp_path):
    """Unless nothing tells that it was trained here, as of a converted checkpoint of others."""
    model, info = tiny_model("mla"), dataclasses.replace(INFO, pretrained=None)
    save_pretrained(tmp_path, model, info)
    assert weights_licence(BASE, str(tmp_path)) is None
    save_pretrained(tmp_path, model, dataclasses.replace(info, data="photos"))
    assert weights_licence(BASE, str(tmp_path)) == "none, they began as random weights"


def test_models_without_a_recorded_licence(tmp_path):
    """Of older versions: from the name of the weights; the names of folders say nothing."""
    model = tiny_model("mla", encoder=None)
    for name, licence in (("augreg_in21k", "apache-2.0"), (None, None)):
        info = dataclasses.replace(INFO, pretrained=name)
        save_pretrained(tmp_path / "old", model, info)
        path = tmp_path / "old" / "config.json"
        values = json.loads(path.read_text())
        del values["licence"]
        path.write_text(json.dumps(values))
        assert licence_of(*from_pretrained(tmp_path / "old")) == licence
        assert weights_licence(BASE, str(tmp_path / "old")) == licence
    assert licence_of(model, dataclasses.replace(INFO, pretrained="runs")).startswith("unknown (")


def hub_cache(root: Path, folder: Path, repo_id: str) -> None:
    """The cache layout of huggingface_hub, as a download leaves it."""
    repository = root / f"models--{repo_id.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    shutil.copytree(folder, repository / "snapshots" / ("0" * 40))


def test_offline_from_the_cache(folder, tmp_path, monkeypatch):
    hub_cache(tmp_path / "cache", folder, "someone/model")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model, info = from_pretrained("someone/model")
    assert info == INFO
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 5, 32, 32)


def test_a_repository_is_fine_tuned_from(folder, tmp_path, monkeypatch):
    hub_cache(tmp_path / "cache", folder, "someone/model-v1.5")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = tiny_model("mla")
    torch.nn.init.zeros_(model.encoder.vit.patch_embed.proj.weight)
    load_encoder(model, "someone/model-v1.5")
    saved = load_file(folder / "model.safetensors")
    assert all(torch.equal(tensor, saved[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(SetrError, match=r"someone/other.pth: no such weight file"):
        load_encoder(model, "someone/other.pth")


def test_offline_and_not_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    refusal = "someone/other: no such folder here, and not in the Hub's cache, and HF_HUB_OFFLINE"
    with pytest.raises(SetrError, match=refusal):
        from_pretrained("someone/other")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("GatedRepoError", "is gated; accept its terms on https://huggingface.co/a/b"),
        ("RepositoryNotFoundError", "a/b: no such folder here, and no such repository on the Hub"),
        ("RevisionNotFoundError", "a/b: has no revision 'main'; give a branch, tag or commit"),
        ("HfHubHTTPError", "download failed"),
    ],
)
def test_hub_refusals_are_one_line(monkeypatch, kind, words):
    import huggingface_hub
    from huggingface_hub import errors

    def snapshot_download(repo_id, *, local_files_only=False, **rest):
        if local_files_only:
            raise errors.LocalEntryNotFoundError("not cached")
        error = getattr(errors, kind)
        raise error.__new__(error)

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr("setr.reading.remote._require_network", lambda *_: None)
    with pytest.raises(SetrError, match=words) as caught:
        from_pretrained("a/b")
    assert "\n" not in str(caught.value)


def test_push_uploads_no_training_state(folder, monkeypatch):
    (folder / "last").mkdir()
    (folder / "last" / "state.pt").write_bytes(b"x")
    calls = []

    class Api:
        def create_repo(self, repo_id, **options):
            calls.append(("create", repo_id, options))

        def upload_folder(self, **options):
            calls.append(("upload", options["repo_id"], options["allow_patterns"]))

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    assert push_to_hub(folder, "me/model", private=True) == "https://huggingface.co/me/model"
    assert calls == [
        ("create", "me/model", {"private": True, "exist_ok": True}),
        ("upload", "me/model", ["config.json", "model.safetensors", "README.md", "config.yaml"]),
    ]


def test_push_without_permission_is_one_line(folder, monkeypatch):
    class Api:
        def create_repo(self, *args, **options):
            raise OSError("401 Unauthorized\nlong text")

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    with pytest.raises(SetrError, match=r"cannot upload \(401 Unauthorized\); see `hf auth login`"):
        push_to_hub(folder, "me/model")


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("config.json", b"{", "config.json: broken"),
        ("config.json", b"{}", "format is not"),
        ("config.json", b"[1]", "format is not"),
        ("config.json", b'{"format": "other"}', "format is not"),
        ("config.json", None, "no config.json"),
        ("model.safetensors", b"", "broken or of another model"),
        ("model.safetensors", b"1234", "broken or of another model"),
        ("model.safetensors", None, "no such file; the model directory is incomplete"),
    ],
)
def test_broken_directories_are_one_line(folder, name, change, words):
    (folder / name).unlink()
    if change is not None:
        (folder / name).write_bytes(change)
    with pytest.raises(SetrError, match=words):
        from_pretrained(folder)


def test_a_run_without_a_model_yet_is_told_from_other_folders(tmp_path):
    for name, words in (("else", "is this a model directory"), ("config.yaml", "its first test")):
        (tmp_path / name).touch()
        with pytest.raises(SetrError, match=words):
            from_pretrained(tmp_path)


def test_weights_of_another_model_are_one_readable_line(folder, tmp_path):
    info = ModelInfo(labels=Labels(tuple("abcdefg")))
    save_pretrained(tmp_path / "other", tiny_model("mla", num_classes=7, channels=8), info)
    shutil.copy(tmp_path / "other" / "model.safetensors", folder)
    with pytest.raises(SetrError, match=r"of another model \(size mismatch for \w+") as caught:
        from_pretrained(folder)
    assert "\\" not in str(caught.value)


def test_unknown_architecture_keyword_is_one_line(folder):
    config = json.loads((folder / "config.json").read_text())
    config["model"]["surprise"] = 1
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(SetrError, match="surprise"):
        from_pretrained(folder)


def test_a_missing_path_is_not_looked_up_on_the_hub():
    for name in ("no_such_folder", "/tmp/no/such/folder", "a/b/c", "runs/gone.pth", "../gone"):
        with pytest.raises(SetrError, match="no such model directory"):
            from_pretrained(name)


@pytest.mark.parametrize("place", ["w/run", "w/x.pth"])
@pytest.mark.parametrize("target", ["gone", None])
def test_a_link_that_leads_nowhere_is_no_name_on_the_hub(tmp_path, monkeypatch, place, target):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w").mkdir()
    target = target or Path(place).name  # itself: a loop
    Path(place).symlink_to(target)
    message = f"{place}: is a link to {target}, which leads nowhere"
    for read in (from_pretrained, named_config):
        with pytest.raises(SetrError, match=message):
            read(place)
    with pytest.raises(SetrError, match=message):
        require_weights(tiny_model(), place)


@pytest.mark.parametrize("name", ["hybrid_base", "fcn_r101", "semantic_fpn_r101"])
def test_hybrid_and_baselines_come_back(tmp_path, name):
    arguments = {"encoder": "resnet10t"}
    if name == "hybrid_base":
        arguments = {"resnet": "resnet10t", "img_size": (64, 96), "channels": 8,
                     "encoder_args": {"embed_dim": 32, "depth": 2, "num_heads": 2}}  # fmt: skip
    assert_comes_back(create_model(name, num_classes=5, **arguments), tmp_path)


def test_plain_info_makes_a_card_too(tmp_path):
    info = dataclasses.replace(ModelInfo(labels=INFO.labels))
    save_pretrained(tmp_path / "m", tiny_model("naive"), info)
    assert "No figures were recorded" in (tmp_path / "m" / "README.md").read_text()


@pytest.mark.parametrize(
    "encoder",
    [
        "vit_tiny_patch16_224",
        "eva02_tiny_patch14_224",
        "vit_small_patch16_dinov3",
        "beit_base_patch16_224",
    ],
)
def test_weights_and_buffers_come_back_in_place(tmp_path, encoder):
    """Position tables of rotary encoders are in no file; they are made when the model is."""
    torch.manual_seed(0)
    small = {"embed_dim": 48, "depth": 1, "num_heads": 2}
    model = tiny_model("pup", encoder=encoder, encoder_args=small, taps=(1,), aux_taps=()).eval()
    save_pretrained(tmp_path / "m", model, INFO)
    again, _ = from_pretrained(tmp_path / "m")
    own = dict(model.named_buffers())
    for name, buffer in again.named_buffers():
        assert torch.equal(buffer, own[name])
    image = torch.rand(1, 3, 70, 50)
    assert torch.equal(again(image), model(image))
    for p in again.parameters():
        p.data.add_(1)  # pages of the file, but never written back
    assert torch.equal(from_pretrained(tmp_path / "m")[0](image), model(image))
    assert torch.nn.Linear(2, 2).weight.device.type == "cpu"  # nothing of it is left behind


def test_a_file_in_half_precision_is_loaded_in_full(folder):
    halves = {k: v.half() if v.is_floating_point() else v for k, v in load_file(
        folder / "model.safetensors").items()}  # fmt: skip
    save_file(halves, folder / "model.safetensors")
    model, _ = from_pretrained(folder)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("name", "revision"),
    [
        *[("a/b", None), ("a/b", "v1.0"), ("a/b@refs/pr/1", None)],
        *[("hf-hub:a/b", "v1.0"), ("hf_hub:a/b@v1", None), ("hf://a/b", None), ("hf:a/b", None)],
    ],
)
def test_a_revision_on_the_hub_is_the_one_asked_for(folder, monkeypatch, name, revision):
    import huggingface_hub

    asked = []

    def snapshot_download(repo_id, *, revision, **rest):
        asked.append((repo_id, revision))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert setr.load(name, revision=revision, device="cpu").info == INFO
    assert from_pretrained(name, revision=revision)[1] == INFO
    load_encoder(tiny_model("mla"), f"{name}@{revision}" if revision else name)
    assert asked == [("a/b", revision or name.partition("@")[2] or None)] * 3


@pytest.mark.parametrize("name", ["a/b@v1", "a/b.pth", "."])
def test_a_revision_of_what_has_none_is_one_line(name):
    with pytest.raises(SetrError, match=f"revision 'v2': only an owner/name .* and {name} is none"):
        setr.load(name, revision="v2")


@pytest.fixture
def partial_cache(tmp_path, monkeypatch):
    """A cache with a README alone, as older clients hand it out; returns the folder."""
    import huggingface_hub

    cached = tmp_path / "snapshot"
    cached.mkdir()
    (cached / "README.md").write_text("only this")

    def snapshot_download(repo_id, *, local_files_only=False, **rest):
        if not local_files_only:
            if not (tmp_path / "model").is_dir():
                raise OSError("asked the network")
            shutil.copytree(tmp_path / "model", cached, dirs_exist_ok=True)
        return str(cached)

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr("setr.reading.remote._require_network", lambda *_: None)
    return cached


def test_a_partly_filled_cache_is_completed(partial_cache, folder):
    assert from_pretrained("a/b")[1] == INFO
    assert from_pretrained("a/b")[1] == INFO


def test_a_partly_filled_cache_is_not_taken_offline(partial_cache, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SetrError, match=r"a/b: no such folder here, and not in the Hub.s cache"):
        from_pretrained("a/b")


def test_pretrained_weights_missing_from_the_cache_are_downloaded(partial_cache):
    model = create_model("setr_naive_tiny", num_classes=2, img_size=64)
    with pytest.raises(SetrError, match=r"download failed \(asked the network\)"):
        load_encoder(model, "augreg_in21k")


def test_models_load_in_several_threads_and_leave_torch_as_it_was(folder):
    with ThreadPoolExecutor(4) as pool:
        models = list(pool.map(lambda _: from_pretrained(folder)[0], range(8)))
    first = models[0].state_dict()
    for model in models:
        assert all(torch.equal(first[name], value) for name, value in model.state_dict().items())
    assert torch.nn.Linear(2, 2).weight.device.type == "cpu"


@pytest.mark.parametrize("key", ["protocol", "model", "labels", "mean", "std", "recipe", "metrics"])
def test_a_value_that_is_null_is_one_line(folder, key):
    path = folder / "config.json"
    values = json.loads(path.read_text())
    assert key in values
    path.write_text(json.dumps({**values, key: None}))
    with pytest.raises(SetrError, match=r"config\.json: (broken|protocol|mean|std|recipe|metrics)"):
        from_pretrained(folder)


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        ("model.encoder_args.embed_dim", 10**9, "number above 100,000"),
        ("model.encoder_args.embed_dim", 50_000, "fewer than the weights that config"),
        ("model.encoder_args.depth", 90_000, "fewer than the weights that config"),
        ("model.encoder_args.depth", -4, "cannot be built with .*depth -4"),
        ("model.encoder_args.num_heads", 0, "cannot be built with .*num_heads 0"),
        ("model.encoder_args.num_heads", -2, "cannot be built with .*num_heads -2"),
        ("model.encoder_args.patch_size", -4, "cannot be built with .*patch_size -4"),
        ("model.patch_stride", 2.0, r"patch_stride 2\.0"),
        ("model.img_size", 90_000, "fewer than the weights that config"),  # its positions are drawn
        ("model.img_size", [32], "cannot be built with img_size"),
        ("model.img_size", -1, "cannot be built with img_size -1"),
        ("model.num_classes", 2.5, "not a valid model description"),
        ("model.pos_interp", "cubic", "give bicubic or bilinear"),
        ("model.encoder", "../x", "not a timm model"),
        ("model.encoder", {}, "not a valid model description"),
        ("mean", "abc", "mean: 'abc': give"),
        ("mean", [0.5, 0.5], "the model takes 3 channels"),
        ("mean", [0.5, 0.5, float("inf")], "mean .*: give finite numbers"),
        ("labels", {"classes": ["a"]}, "labels of 1 classes: the model has 5"),
        ("std", [0, 1, 1], "positive"),
        ("crop_size", ["a", "b"], "crop_size"),
        ("crop_size", [0, 32], r"crop_size \(0, 32\): give positive pixels"),
        ("metrics", 5, "metrics"),
        ("protocol.window", [1], "protocol.window"),
        ("protocol.short_side", 0, "short_side 0: give positive pixels"),
        ("protocol.flip", "yes", "protocol.flip: 'yes': give true or false"),
        ("protocol.flips", True, "did you mean 'protocol.flip'"),
    ],
)
def test_values_that_cannot_be_are_one_line_and_take_no_memory(folder, place, value, words):
    path = folder / "config.json"
    values = json.loads(path.read_text())
    inner = values
    *parents, last = place.split(".")
    for key in parents:
        inner = inner[key]
    inner[last] = value
    path.write_text(json.dumps(values))
    with pytest.raises(SetrError, match=rf"^{re.escape(str(folder))}/.*: .*{words}") as caught:
        from_pretrained(folder)
    assert caught.value.code == FAILED


@pytest.fixture
def address(tmp_path):
    """A folder behind an address of this machine, and how often a file of it was asked for."""
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, directory=str(tmp_path / "served"), **kwargs)

        def log_message(self, *_):
            asked.append(self.path)

    (tmp_path / "served").mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield tmp_path / "served", f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


def test_weights_at_an_address_are_fetched_once(address, shared, tmp_path, monkeypatch, capsys):
    folder, url, asked = address
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "cache"))
    for name in ("setr.pth", "other.pth"):
        shutil.copy(shared / "parity/official/naive.pth", folder / name)
    model = setr.load(f"{url}/setr.pth", num_heads=4, device="cpu").model
    assert main(["convert", f"{url}/setr.pth", "--num-heads", "4", "-o", str(tmp_path / "m")]) == OK
    assert len(asked) == 1
    assert f"{url}/setr.pth" in (tmp_path / "m" / "README.md").read_text()
    again = setr.load(tmp_path / "m", device="cpu").model
    assert torch.equal(again.encoder.vit.pos_embed, model.encoder.vit.pos_embed)
    load_encoder(model, f"{url}/other.pth")
    assert len(asked) == 2
    with pytest.raises(SetrError, match=r"none\.pth: the server answers 404 File not found; down"):
        setr.load(f"{url}/none.pth")
    with pytest.raises(SetrError, match="names no file"):
        setr.load(url)
    capsys.readouterr()
    assert main(["convert", "http://127.0.0.1:9/x.pth", "-o", str(tmp_path / "n")]) == FAILED
    assert "refused" in capsys.readouterr().err
    assert not (tmp_path / "n").exists()


@pytest.mark.parametrize(
    "code", ["from setr.reading.remote import import_hub; import_hub()", "import setr._timm"]
)
@pytest.mark.parametrize(("given", "expected"), [(None, True), ("0", False)])
def test_the_client_of_the_hub_reports_nothing_else(code, given, expected):
    """By default it tells the version of torch, and asks for a list of agents to tell them, too."""
    decided = ("HF_HUB_DISABLE_TELEMETRY", "DISABLE_TELEMETRY", "DO_NOT_TRACK")
    env = {key: value for key, value in os.environ.items() if key not in decided}
    env |= {"HF_HUB_DISABLE_TELEMETRY": given} if given else {}
    code += "; from huggingface_hub import constants; print(constants.HF_HUB_DISABLE_TELEMETRY)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env
    )
    assert done.stdout.split() == [str(expected)]


@pytest.mark.parametrize("depth", [[100_000] * 2_000, list(range(100_000)), 100_001])
def test_a_description_with_more_numbers_than_any_architecture_is_refused(depth, folder):
    values = json.loads((folder / "config.json").read_text())
    values["model"]["encoder_args"] = {"depth": depth}
    (folder / "config.json").write_text(json.dumps(values))
    began = time.monotonic()
    with pytest.raises(SetrError, match=r"config\.json: model: has a number above") as caught:
        from_pretrained(folder)
    assert time.monotonic() - began < 5
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("checkpoint_path", "/etc/hostname"),
        ("pretrained", True),
        ("pretrained_cfg", {"url": "http://example.org/x.pth"}),
        ("cache_dir", "/tmp"),
    ],
)
def test_a_description_names_no_other_weights(name, value, folder):
    values = json.loads((folder / "config.json").read_text())
    values["model"]["encoder_args"] = {name: value}
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(SetrError, match=f"config.json: encoder_args: {name} is about weights"):
        from_pretrained(folder)
