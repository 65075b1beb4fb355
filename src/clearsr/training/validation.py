"""Looking at a network in training: held-out crops through `ClearSRPipeline`, PSNR, SSIM and a picture.

The crops and their degradation depend on the run's seed alone, so every validation of a run sees the same
images.
"""

from pathlib import Path

import torch

from clearsr.config.training import TrainConfig
from clearsr.data.photographs import Photographs
from clearsr.degradation import degrade_mixed
from clearsr.evaluation.metrics import psnr, ssim
from clearsr.image import ImageData, resize, to_signed, to_unit, write_image
from clearsr.models.clearsr import ClearSRNetwork
from clearsr.pipeline import ClearSRPipeline
from clearsr.seeds import make_generator


class Validation:
    """Held-out crops, degraded once."""

    def __init__(self, config: TrainConfig) -> None:
        """Reads `validation.count` images of `data.validation`.

        Raises:
            ClearSRError: an image cannot be read.
        """
        self._config = config
        photographs = Photographs(config.data.validation)
        count = min(config.validation.count, len(photographs))
        chosen = [i * len(photographs) // count for i in range(count)]
        self.hr = [_centre(photographs[i], config) for i in chosen]
        self.lr = [
            degrade_mixed(
                hr, config.degradation, make_generator("validation", config.seed, i), config.data.upscale
            )
            for i, hr in enumerate(self.hr)
        ]

    @torch.no_grad()
    def run(self, network: ClearSRNetwork, picture: Path) -> dict[str, float]:
        """Mean PSNR-Y and SSIM-Y, ours and bicubic's; writes LR | bicubic | ours | HR to `picture`."""
        ours = self._reconstruct(network)
        rows, scores = [], []
        for sr, lr, hr in zip(ours, self.lr, self.hr, strict=True):
            size = (hr.shape[-2], hr.shape[-1])
            bicubic = resize(lr[None], size)[0]
            enlarged = torch.nn.functional.interpolate(lr[None], size)[0]
            rows.append(torch.cat([enlarged, bicubic, sr, hr], dim=2))
            scores.append([*_fidelity(sr, hr), *_fidelity(bicubic, hr)])
        write_image(ImageData(torch.cat(rows, dim=1)), picture)
        names = ("psnr", "ssim", "bicubic_psnr", "bicubic_ssim")
        means = torch.tensor(scores).mean(0).tolist()
        return dict(zip(names, means, strict=True))

    def _reconstruct(self, network: ClearSRNetwork) -> list[torch.Tensor]:
        """What the stage in training makes of the crops: the autoencoder of HR, everything else of LR."""
        if self._config.stage == "autoencoder":
            device = next(network.parameters()).device
            latents = [network.latents.encode_hr(to_signed(hr[None].to(device))) for hr in self.hr]
            return [to_unit(network.latents.decode(z)).float().cpu()[0] for z in latents]
        sampling = self._config.validation.sampling
        if self._config.stage == "lr_encoder":
            sampling = sampling.model_copy(update={"steps": 0})
        pipeline = ClearSRPipeline(network, sampling, device=str(next(network.parameters()).device))
        return [result.color for result in pipeline.upscale([ImageData(lr) for lr in self.lr])]


def _centre(image: torch.Tensor, config: TrainConfig) -> torch.Tensor:
    """The central `validation.crop_size` of a uint8 3×H×W image, or as much as there is, in [0, 1]."""
    height, width = (
        min(config.validation.crop_size, side) // config.data.upscale * config.data.upscale
        for side in image.shape[-2:]
    )
    top, left = (image.shape[-2] - height) // 2, (image.shape[-1] - width) // 2
    return image[:, top : top + height, left : left + width].float() / 255


def _fidelity(sr: torch.Tensor, hr: torch.Tensor) -> tuple[float, float]:
    return psnr(sr, hr).item(), ssim(sr, hr).item()
