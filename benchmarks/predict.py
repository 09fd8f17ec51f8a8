"""What `combo predict` costs: CPU time for a minute of video, part by part, and memory.

    python benchmarks/predict.py RUN [--minutes 10] [--height 720]

Makes a film of moving noise with a tone, predicts it in a process of its own, kills that one half
way through with SIGKILL, starts it again, and prints what the two took.
"""

import argparse
import json
import multiprocessing
import os
import resource
import signal
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from combo.pipeline.predict.folder import PredictionFolder
from combo.pipeline.predict.inputs import open_film
from combo.pipeline.predict.predictor import Predictor


def write_film(path: Path, minutes: float, height: int) -> None:
    """Ten seconds, encoded once and repeated."""
    width, rate, seconds = height * 16 // 9, 25, 10
    rng = np.random.default_rng(0)
    ground = rng.integers(60, 200, (height // 8, width // 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    with av.open(str(path), "w") as out:
        video = out.add_stream("libx264", rate=rate, options={"preset": "ultrafast", "bf": "0"})
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        video.codec_context.gop_size = rate
        video.codec_context.time_base = Fraction(1, rate)
        sound = out.add_stream("aac", rate=48_000, layout="stereo")
        packets = []
        for n in range(rate * seconds):
            picture = np.roll(ground, 4 * n, 1)
            picture[height // 3 : height // 2, 2 * n : 2 * n + 200] = (230, 80, 30)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = n, Fraction(1, rate)
            packets += video.encode(frame)
        packets += video.encode(None)
        kept = [(bytes(p), p.pts, p.is_keyframe, p.time_base) for p in packets]
        repeats = round(60 * minutes / seconds)
        tone = 0.2 * np.sin(np.arange(48_000) * 2 * np.pi * 440 / 48_000)
        second = np.stack([tone, tone]).astype(np.float32)
        for again in range(repeats):
            for data, pts, key, base in kept:
                packet = av.Packet(data)
                packet.stream, packet.time_base, packet.is_keyframe = video, base, key
                packet.pts = packet.dts = pts + round(again * seconds / base)
                out.mux(packet)
            for number in range(seconds):
                frame = av.AudioFrame.from_ndarray(second, "fltp", "stereo")
                frame.sample_rate, frame.time_base = 48_000, Fraction(1, 48_000)
                frame.pts = (again * seconds + number) * 48_000
                out.mux(sound.encode(frame))
        out.mux(sound.encode(None))


def predict(run: Path, film: Path, out: Path, report: Path) -> None:
    """Predict, and write after each step what each part has taken and the peak of memory."""
    began = last = time.process_time()
    opened = open_film(film)
    predictor = Predictor(run, "cpu")
    took = {"opening": time.process_time() - began, "sound": 0.0, "frames": 0.0, "painting": 0.0}

    def told(what: str, _count: int) -> None:
        nonlocal last
        now = time.process_time()
        took[what] += now - last
        last = now
        took["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        report.write_text(json.dumps(took))

    last = time.process_time()
    PredictionFolder(out, opened, predictor).make(told)
    took["all"] = time.process_time() - began
    report.write_text(json.dumps(took))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--height", type=int, default=720)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        film, out = Path(name) / "film.mp4", Path(name) / "out"
        write_film(film, given.minutes, given.height)
        context = multiprocessing.get_context("spawn")
        half = round(30 * given.minutes)
        for turn in ("until killed", "again"):
            report = Path(name) / f"{turn}.json"
            worker = context.Process(target=predict, args=(given.run, film, out, report))
            worker.start()
            while turn == "until killed" and worker.is_alive():
                if len(list(out.glob("masks/*.png"))) >= half:
                    os.kill(worker.pid or 0, signal.SIGKILL)
                time.sleep(0.2)
            worker.join()
            took = json.loads(report.read_text())
            print(f"{turn} (exit {worker.exitcode}), {len(list(out.glob('masks/*.png')))} masks:")
            print(f"  peak memory {took.pop('peak_gb'):.2f} GB")
            for part, seconds in took.items():
                print(f"  {part:9} {seconds:7.1f} CPU s, {seconds / given.minutes:6.2f} a minute")


if __name__ == "__main__":
    main()
