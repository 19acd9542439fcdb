"""How degradations are spelled, and the inputs that are made of any of them."""

import json

import pytest
import torch

from sr_zoo.degradations import (
    JPEG,
    AnisotropicGaussianBlur,
    DegradationError,
    Downsample,
    Drawn,
    GaussianBlur,
    GaussianNoise,
    OneOf,
    Pipeline,
    PlateauBlur,
    PoissonNoise,
    Quantize,
    Resize,
    Sinc,
    Sometimes,
    blind_inputs,
    clean_inputs,
    degradations_from,
    evaluation_inputs,
    second_order,
    spellings_of,
)


class TestReading:
    @pytest.mark.parametrize(
        ("spelling", "name", "degradation"),
        [
            ("blur", "blur", GaussianBlur(2.0, 21)),
            ("blur:3", "blur", GaussianBlur(3.0, 21)),
            ("noise:0.05", "noise", GaussianNoise(0.05)),
            ("jpeg:10", "jpeg", JPEG(10)),
            ("light=noise:0.02", "light", GaussianNoise(0.02)),
            ('grain={"type": "PoissonNoise"}', "grain", PoissonNoise()),
        ],
    )
    def test_what_a_spelling_means(self, spelling, name, degradation):
        assert degradations_from([spelling]) == {name: degradation}

    def test_a_file_is_named_after_itself_or_as_told(self, tmp_path):
        file = tmp_path / "rain.json"
        file.write_text(json.dumps(second_order(2).config()))
        assert degradations_from([str(file)]) == {"rain": second_order(2)}
        assert degradations_from([f"storm={file}"]) == {"storm": second_order(2)}

    def test_the_protocol_comes_first_in_its_order(self):
        spelled = ["heavy=noise:0.2", "jpeg", "blur"]
        assert list(degradations_from(spelled)) == ["blur", "jpeg", "heavy"]

    def test_everything_wrong_is_in_one_message(self, tmp_path):
        broken = tmp_path / "broken.json"
        broken.write_text("{")
        spelled = ["rain", "noise:loud", "noise:7", "jpeg:0.5", str(broken), "gone.json", 'odd={"type": "Odd"}']
        with pytest.raises(DegradationError) as caught:
            degradations_from([*spelled, "blur", "blur:3", "clean=blur", "a b=blur"])
        for part in (
            "'rain'", "'noise:loud'", "in [0, 1]; got 7", "'jpeg:0.5'", "broken.json", "gone.json", "'Odd'",
            "'blur' is given twice", "got 'clean'", "got 'a b'",
        ):  # fmt: skip
            assert part in str(caught.value), part

    @pytest.mark.parametrize(
        "degradations",
        [
            degradations_from(["blur", "noise", "jpeg"]),
            degradations_from(["blur:3.5", "noise:0.05", "jpeg:10"]),
            {"blur": GaussianBlur(2.0, 7), "jpeg": JPEG(30, "4:4:4"), "noise": PoissonNoise(2.0)},
            {"any": second_order(2), "many": Drawn(GaussianBlur(), {"sigma": (1.0, 2.0)})},
        ],
    )
    def test_spelled_again_they_are_the_same(self, degradations):
        assert degradations_from(spellings_of(degradations)) == degradations

    def test_plain_ones_are_spelled_plainly(self):
        assert spellings_of(degradations_from(["jpeg:10", "blur"])) == ["blur", "jpeg:10"]


class TestInputs:
    @pytest.mark.parametrize(
        ("degradation", "optical"),
        [
            (GaussianBlur(), True),
            (PlateauBlur(), True),
            (Sometimes(AnisotropicGaussianBlur(), 0.5), True),
            (Drawn(GaussianBlur(), {"sigma": (1.0, 2.0)}), True),
            (OneOf((GaussianBlur(), PlateauBlur())), True),
            (OneOf((GaussianBlur(), PoissonNoise())), False),
            (Pipeline(()), False),
            (Sinc(), False),
            (JPEG(), False),
        ],
    )
    def test_blurs_are_in_front_of_the_downsampling(self, degradation, optical):
        clean, down = clean_inputs(2), Downsample(2)
        made = evaluation_inputs(2, degradations={"it": degradation})["it"]
        assert made == Pipeline((degradation, down, Quantize()) if optical else (down, degradation, Quantize()))
        assert clean == Pipeline((down, Quantize()))

    def test_names_and_degradations_are_the_same_thing(self):
        names = ["blur", "noise", "jpeg"]
        assert evaluation_inputs(3, degradations=names) == evaluation_inputs(3, degradations=degradations_from(names))
        assert blind_inputs(3, degradations=names) == blind_inputs(3, degradations=degradations_from(names))

    def test_what_shrinks_the_image_is_the_whole_way(self):
        parts = {"web": second_order(2), "noise": GaussianNoise(0.1)}
        inputs = evaluation_inputs(2, degradations=parts)
        assert list(inputs) == ["clean", "web", "noise"]
        assert inputs["web"] == Pipeline((second_order(2), Quantize()))
        image = torch.rand(1, 3, 96, 96)
        sizes = {one(image, torch.Generator().manual_seed(0)).shape for one in inputs.values()}
        assert sizes == {(1, 3, 48, 48)}
        assert blind_inputs(2, degradations=parts) == OneOf(tuple(inputs.values()))

    def test_one_at_a_time_each_patch_has_one_or_none(self):
        batch = torch.rand(64, 3, 32, 32)
        degrade = blind_inputs(2, degradations=degradations_from(["blur", "noise", "jpeg"]), one_at_a_time=True)
        _, strengths = degrade.traced(batch, torch.Generator().manual_seed(0))
        hit = torch.stack([strengths[name] > 0 for name in ("blur", "noise", "jpeg")])
        assert hit.sum(0).max() == 1
        assert 6 <= (~hit.any(0)).sum() <= 26
        assert all(6 <= count <= 26 for count in hit.sum(1))

    def test_an_unsuitable_size_is_refused_by_name(self):
        parts = {"fine": GaussianBlur(), "tiny": Resize(0.25), "other": second_order(3)}
        for make in (blind_inputs, evaluation_inputs):
            with pytest.raises(DegradationError, match="'tiny' makes 24x24 of it, 'other' makes 32x32 of it"):
                make(2, degradations=parts)
        with pytest.raises(DegradationError, match="none"):
            evaluation_inputs(2, degradations={})
        with pytest.raises(DegradationError, match="odd=3"):
            evaluation_inputs(2, degradations={"odd": 3})
