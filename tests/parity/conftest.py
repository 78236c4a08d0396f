"""Collects what the parity tests measure and prints it as one table at the end."""

COLUMNS = "model", "images", "quantity", "error in float64", "float32: ours", "PyTorch's", "ratio"


def pytest_terminal_summary(terminalreporter):
    rows = [
        value
        for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed")
        for name, value in report.user_properties
        if name == "parity"
    ]
    if rows:
        widths = [max(len(row[i]) for row in [COLUMNS, *rows]) for i in range(len(COLUMNS))]
        terminalreporter.section("parity with PyTorch, relative L2")
        for row in (COLUMNS, *rows):
            line = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            terminalreporter.write_line("  ".join(line).rstrip())
