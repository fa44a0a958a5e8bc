"""The Pareto front as one self-contained HTML page."""

from __future__ import annotations

from weft.plan.planner import Plan


def pareto_html(plan: Plan) -> str:
    """Tokens a second a GPU against TPOT: every point, and the front as a line."""
    import plotly.graph_objects as go

    gpus = plan.cluster.num_gpus
    figure = go.Figure()
    for name, points, mode in (
        ("layouts", plan.points, "markers"),
        ("Pareto front", plan.pareto(), "lines+markers"),
    ):
        figure.add_scatter(
            x=[point.tpot_ms for point in points],
            y=[point.tokens_per_s / gpus for point in points],
            text=[f"{point.layout.name}, batch {point.concurrency}" for point in points],
            mode=mode,
            name=name,
        )
    figure.update_layout(
        title=f"{plan.question.spec.name} on {gpus} GPUs",
        xaxis_title="TPOT (ms)",
        yaxis_title="tokens/s per GPU",
        template="plotly_white",
    )
    return str(figure.to_html(include_plotlyjs=True, full_html=True))
