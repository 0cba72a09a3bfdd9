from pipelines.reporting.sections import gains_section
from tests.pipelines.reporting.test_table import report, row


def test_a_student_has_gains_where_its_teacher_has_no_fraction_to_keep():
    lines = gains_section(report(row(variant="paper"))).strip().splitlines()
    assert lines[0] == "## Gains of teachers and students, in nats per target token"
    cells = [cell.strip() for cell in lines[-1].strip("|").split("|")]
    assert cells == [
        "e4 paper",
        "0.100 [0.050, 0.150]",
        "0.050 [0.010, 0.090]",
        "0.010 [-0.020, 0.040]",
        "-0.200 [-0.250, -0.150]",
    ]
