"""The benchmark's programs: made once for layers that are alike."""

import maskwork as mw
from maskwork.gen import bench_sample
from maskwork.gen.bench import Bench
from maskwork.gen.workload import COLUMNS

ROW = "net,{},1,8,8,6,6,3,3,1,1,1,1,1,1,{},1,1,position,forward"


def test_layers_that_are_alike_share_their_programs(tmp_path, monkeypatch):
    """Equal layers with equal masks are lowered once, and others for themselves."""
    rows = [ROW.format(name, share) for name, share in (("a", 0.7), ("b", 0.7), ("c", 0.5))]
    (tmp_path / "w.csv").write_text("\n".join([",".join(COLUMNS), *rows]))
    lowered, lower = [], bench_sample._program

    def count(*args, **options):
        lowered.append(args)
        return lower(*args, **options)

    monkeypatch.setattr(bench_sample, "_program", count)
    first, second, other = Bench(str(tmp_path / "w.csv"), mw.preset("small")).run()["layers"]
    assert len(lowered) == 2
    assert first["cycles"] == second["cycles"] > other["cycles"]
