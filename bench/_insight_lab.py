"""A third set for bench.insight: the tables of a hospital's laboratory.

Written by somebody who had not read the advisor, and committed before it ran on any of them. A case has the
form of those in `bench._insight_cases`; its other tables are `{t}__name`.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from uuid import UUID

from bench._insight_cases import Case, Expected, Traffic, missing

__all__ = ["LAB"]

NOTE = "repeat('n', 80)"
FIRST_DAY = date(2026, 1, 1)
FIRST_HOUR = datetime(2026, 1, 1, tzinfo=UTC)
DAY = "date '2026-01-01' + (g % 300)"
HOUR = "timestamptz '2026-01-01 00:00Z' + g * interval '7 minutes'"


def filled(columns: str, values: str, *more: str, name: str = "{t}", rows: int = 10_000) -> str:
    """A table with its rows; `g` counts them."""
    return ";".join(
        [
            f"create table {name} ({columns})",
            f"insert into {name} select {values} from generate_series(1, {rows}) g",
            *more,
        ]
    )


def one(kind: str, *columns: tuple[str, ...]) -> tuple[Expected, ...]:
    return (Expected(kind=kind, columns=columns),)


def hospital(n: int) -> UUID:
    return UUID(int=n)


HOSPITAL = "lpad(to_hex(g % 40), 32, '0')::uuid"

PLANTED_MISSING = (
    Case(
        name="barcode",
        setup=filled(
            "specimen_no bigint primary key, barcode text not null, drawn_at timestamptz not null, note text",
            f"g, 'BC' || lpad((g * 7919 % 100003)::text, 8, '0'), {HOUR}, {NOTE}",
        ),
        traffic=(
            Traffic(
                sql="select specimen_no, drawn_at from {t} where barcode = $1",
                args=lambda n: (f"BC{(n + 1) * 7919 % 100003:08d}",),
            ),
        ),
        expected=missing(("barcode",)),
    ),
    Case(
        name="latest_result",
        setup=filled(
            "result_no bigint primary key, patient int not null, analyte int not null,"
            " taken_at timestamptz not null, value numeric(10, 3), comment text",
            f"g, g * 31 % 120, g % 9, {HOUR}, random() * 100, {NOTE}",
        ),
        traffic=(
            Traffic(
                sql="select value, taken_at from {t} where patient = $1 and analyte = $2"
                " order by taken_at desc limit 1",
                args=lambda n: (n * 31 % 120, n % 9),
            ),
        ),
        expected=missing(
            ("patient", "analyte", "taken_at"),
            ("analyte", "patient", "taken_at"),
            ("patient", "analyte"),
            ("analyte", "patient"),
        ),
    ),
    Case(
        name="day_before_clinic",
        setup=filled(
            "order_no bigint primary key, drawn_on date not null, clinic int not null, requester text",
            f"g, {DAY}, g * 13 % 200, {NOTE}",
            "create index {t}_day_clinic on {t} (drawn_on, clinic)",
        ),
        traffic=(
            Traffic(
                sql="select order_no, requester from {t} where clinic = $1 and drawn_on between $2 and $3",
                args=lambda n: (n % 200, FIRST_DAY + timedelta(10), FIRST_DAY + timedelta(260)),
            ),
            Traffic(
                sql="select order_no, clinic from {t} where drawn_on = $1 and clinic < 20",
                args=lambda n: (FIRST_DAY + timedelta(n),),
            ),
        ),
        expected=missing(("clinic", "drawn_on"), ("clinic",)),
    ),
    Case(
        name="run_last",
        setup=filled(
            "run_key bigint primary key, batch text not null, analyzer int not null, run_no int not null,"
            " log text",
            f"g, 'batch ' || md5(g::text), g % 25, g / 25, {NOTE}",
            "create index {t}_all on {t} (batch, analyzer, run_no)",
        ),
        traffic=(
            Traffic(
                sql="select batch, log from {t} where analyzer = $1 and run_no = $2",
                args=lambda n: (n % 25, n * 17),
            ),
            Traffic(sql="select log from {t} where batch = $1", args=lambda n: (f"batch {n}",)),
        ),
        expected=missing(("analyzer", "run_no"), ("run_no", "analyzer"), ("run_no",)),
    ),
    Case(
        name="awaiting_validation",
        setup=filled(
            "result_no bigint primary key, received_at timestamptz not null, priority text not null,"
            " validated_by int, raw text",
            f"g, {HOUR}, case when g % 3 = 0 then 'stat' else 'routine' end,"
            f" case when g % 149 = 0 then null else g % 12 end, {NOTE}",
        ),
        traffic=(
            Traffic(
                sql="select result_no, raw from {t} where validated_by is null and priority = 'stat'"
                " order by received_at limit 50",
                calls=12,
            ),
        ),
        expected=missing(("received_at",), ("priority", "received_at"), ("priority",), where="validated_by"),
    ),
    Case(
        name="unshipped_kits",
        setup=filled(
            "kit_no bigint primary key, depot int not null, shipped boolean not null, destination text",
            f"g, g % 8, g % 127 <> 0, {NOTE}",
        ),
        traffic=(
            Traffic(
                sql="select kit_no, destination from {t} where not shipped and depot = $1",
                args=lambda n: (n % 8,),
            ),
        ),
        expected=missing(("depot",), ("kit_no",), where="shipped"),
    ),
    Case(
        name="referrer_email",
        setup=filled(
            "referrer_no int primary key, email text not null, practice text",
            f"g, 'Dr.' || md5(g::text) || '@Practice.example', {NOTE}",
        ),
        traffic=(
            Traffic(
                sql="select referrer_no, practice from {t} where lower(email) = lower($1)",
                args=lambda n: (f"DR.{n}@practice.EXAMPLE",),
            ),
        ),
        expected=missing(("lower(email)",)),
    ),
    Case(
        name="utc_day",
        setup=filled(
            "reading_no bigint primary key, taken_at timestamptz not null, celsius numeric(5, 2), probe text",
            f"g, {HOUR}, -80 + random(), {NOTE}",
        ),
        traffic=(
            Traffic(
                sql="select celsius from {t} where (taken_at at time zone 'UTC')::date = $1",
                args=lambda n: (FIRST_DAY + timedelta(n + 2),),
            ),
        ),
        expected=missing(),
    ),
    Case(
        name="message_accession",
        setup=filled(
            "message_no bigint primary key, payload jsonb not null",
            f"g, jsonb_build_object('accession', 'A' || g, 'kind', 'ORU', 'text', {NOTE})",
        ),
        traffic=(
            Traffic(
                sql="select message_no from {t} where payload ->> 'accession' = $1",
                args=lambda n: (f"A{n * 11}",),
            ),
        ),
        expected=missing(),
    ),
    Case(
        name="unreported_orders",
        setup=filled(
            "order_no bigint primary key, clinic int not null",
            "g, g % 500",
            "create index {t}__order_clinic on {t}__order (clinic)",
            name="{t}__order",
            rows=5000,
        )
        + ";"
        + filled(
            "report_no bigint primary key, order_no bigint not null, body text", f"g, g * 3 % 5003, {NOTE}"
        ),
        traffic=(
            Traffic(
                sql="select o.order_no from {t}__order o where o.clinic = $1"
                " and not exists (select 1 from {t} r where r.order_no = o.order_no)",
                args=lambda n: (n,),
            ),
        ),
        expected=missing(("order_no",)),
    ),
    Case(
        name="panel_removed",
        setup=filled("panel_no int primary key, title text", "g, 'panel ' || g", name="{t}__panel", rows=900)
        + ";"
        + filled(
            "test_no bigint primary key, panel_no int not null references {t}__panel, method text",
            f"g, g % 800 + 1, {NOTE}",
        ),
        traffic=(Traffic(sql="delete from {t}__panel where panel_no = $1", args=lambda n: (850 + n,)),),
        expected=one("foreign_key", ("panel_no",)),
    ),
    Case(
        name="void_by_accession",
        setup=filled(
            "label_no bigint primary key, accession text not null, state text not null, printed text",
            f"g, 'ACC' || g, 'printed', {NOTE}",
        ),
        traffic=(
            Traffic(
                sql="update {t} set state = 'void' where accession = $1", args=lambda n: (f"ACC{n * 100}",)
            ),
        ),
        expected=missing(("accession",)),
    ),
    Case(
        name="expired_reagents",
        setup=filled(
            "lot_no bigint primary key, expires_at timestamptz not null, supplier text",
            f"g, {HOUR}, {NOTE}",
        ),
        traffic=(
            Traffic(
                sql="delete from {t} where expires_at < $1",
                args=lambda n: (FIRST_HOUR + timedelta(minutes=35 * n),),
            ),
        ),
        expected=missing(("expires_at",)),
    ),
    Case(
        name="last_reading",
        setup=filled(
            "reading_no bigint primary key, freezer int not null, read_at timestamptz not null, raw text",
            f"g, g % 20, {HOUR}, {NOTE}",
        ),
        traffic=(
            Traffic(
                sql="select max(read_at) from {t} where freezer = $1", args=lambda n: (n % 20,), calls=10
            ),
        ),
        expected=missing(("freezer", "read_at")),
    ),
    Case(
        name="runs_of_day",
        setup=filled(
            "run_no bigint primary key, analyzer int not null, run_on date not null, log text",
            f"g, g % 30, {DAY}, {NOTE}",
        ),
        traffic=(
            Traffic(
                sql="select run_no from {t} where analyzer = any($1::int[]) and run_on = $2",
                args=lambda n: ([n % 30, (n + 7) % 30], FIRST_DAY + timedelta(n * 3)),
            ),
        ),
        expected=missing(("analyzer", "run_on"), ("run_on", "analyzer"), ("run_on",)),
    ),
    Case(
        name="patient_list",
        setup=filled(
            "patient_no bigint primary key, hospital uuid not null, surname text not null,"
            " given text not null, deleted_at timestamptz, address text",
            f"g, {HOSPITAL}, md5(g::text), md5((g + 1)::text), case when g % 50 = 0 then now() end, {NOTE}",
        ),
        traffic=(
            Traffic(
                sql="select patient_no, surname, given from {t} where hospital = $1 and deleted_at is null"
                " order by surname, given limit 25",
                args=lambda n: (hospital(n % 40),),
            ),
        ),
        expected=missing(("hospital", "surname", "given"), ("hospital", "surname"), where="*"),
    ),
    Case(
        name="camel",
        setup=filled(
            '"specimenId" bigint primary key, "patientId" int not null, "createdAt" timestamptz, note text',
            f"g, g * 17 % 2500, {HOUR}, {NOTE}",
        ),
        traffic=(
            Traffic(
                sql='select "specimenId", "createdAt" from {t} where "patientId" = $1', args=lambda n: (n,)
            ),
        ),
        expected=missing(("patientId",), ('"patientId"',)),
    ),
    Case(
        name="chart",
        setup="create schema if not exists clinic;"
        + filled(
            "visit_no bigint primary key, chart_no int not null, seen_on date not null, note text",
            f"g, g * 29 % 3000, {DAY}, {NOTE}",
            name="clinic.{t}",
        ),
        traffic=(
            Traffic(
                sql="select visit_no, seen_on from clinic.{t} where chart_no = $1", args=lambda n: (n + 5,)
            ),
        ),
        expected=missing(("chart_no",)),
    ),
    Case(
        name="by_month",
        setup="create table {t} (event_no bigint not null, happened_on date not null, patient int not null,"
        " body text, primary key (event_no, happened_on)) partition by range (happened_on);"
        + ";".join(
            f"create table {{t}}__{month} partition of {{t}}"
            f" for values from ('2026-{month:02d}-01') to ('2026-{month + 1:02d}-01')"
            for month in range(1, 5)
        )
        + ";insert into {t} select g, date '2026-01-01' + (g % 120), g * 7 % 2000, "
        + f"{NOTE} from generate_series(1, 12000) g",
        traffic=(Traffic(sql="select event_no, body from {t} where patient = $1", args=lambda n: (n * 3,)),),
        expected=missing(("patient",)),
    ),
)

PLANTED_INDEXES = (
    Case(
        name="collector_index",
        setup=filled(
            "tube_no bigint primary key, ward int not null, collected_by int not null",
            "g, g % 700, g % 90",
            "create index {t}_ward on {t} (ward)",
            "create index {t}_collector on {t} (collected_by)",
        ),
        traffic=(
            Traffic(sql="select tube_no from {t} where ward = $1", args=lambda n: (n,)),
            Traffic(sql="select ward from {t} where tube_no = $1", args=lambda n: (n + 1,)),
        ),
        expected=one("unused_index", ("collected_by",)),
    ),
    Case(
        name="cancelled_index",
        setup=filled(
            "order_no bigint primary key, ordered_at timestamptz not null, cancelled boolean not null",
            f"g, {HOUR}, g % 40 = 0",
            "create index {t}_cancelled on {t} (ordered_at) where cancelled",
        ),
        traffic=(Traffic(sql="select ordered_at from {t} where order_no = $1", args=lambda n: (n + 1,)),),
        expected=one("unused_index"),
    ),
    Case(
        name="twice_accession",
        setup=filled(
            "sample_no bigint primary key, accession text not null unique, kind text",
            "g, 'S' || g, 'serum'",
            "create index {t}_accession on {t} (accession)",
        ),
        traffic=(Traffic(sql="select kind from {t} where accession = $1", args=lambda n: (f"S{n + 1}",)),),
        expected=one("duplicate_index", ("accession",)),
    ),
    Case(
        name="bed_history",
        setup=filled(
            "stay_no bigint primary key, ward int not null, bed int not null, since timestamptz not null",
            f"g, g % 600, g % 11, {HOUR}",
            "create index {t}_ward on {t} (ward)",
            "create index {t}_ward_bed on {t} (ward, bed, since desc)",
        ),
        traffic=(
            Traffic(sql="select stay_no from {t} where ward = $1", args=lambda n: (n,)),
            Traffic(
                sql="select stay_no from {t} where ward = $1 and bed = $2 order by since desc limit 1",
                args=lambda n: (n, n % 11),
            ),
        ),
        expected=one("duplicate_index", ("ward",)),
    ),
    Case(
        name="key_again",
        setup=filled(
            "result_no bigint primary key, value text",
            f"g, {NOTE}",
            "create unique index {t}_again on {t} (result_no)",
        ),
        traffic=(Traffic(sql="select value from {t} where result_no = $1", args=lambda n: (n + 1,)),),
        expected=one("duplicate_index", ("result_no",)),
    ),
    Case(
        name="names_twice",
        setup=filled(
            "doctor_no bigint primary key, name text not null",
            "g, 'Dr. ' || md5(g::text)",
            "create index {t}_by_name on {t} (lower(name))",
            "create index {t}_name_search on {t} (lower(name))",
        ),
        traffic=(
            Traffic(sql="select doctor_no from {t} where lower(name) = $1", args=lambda n: (f"dr. {n}",)),
        ),
        expected=one("duplicate_index", ("lower(name)",)),
    ),
)

RESULTS = filled(
    "result_no bigint primary key, specimen int not null, analyte text not null, value numeric(8, 2)",
    "g, g % 2000, 'K', g % 90",
    "create index {t}_specimen on {t} (specimen)",
    rows=6000,
)

PLANTED_STATEMENTS = (
    Case(
        name="results_of_each",
        setup=RESULTS,
        traffic=(
            Traffic(
                sql="select analyte, value from {t} where specimen = $1",
                args=lambda n: (n % 2000,),
                calls=6,
                loop="sequence",
            ),
        ),
        expected=one("repeated_statement"),
    ),
    Case(
        name="counts_at_once",
        setup=RESULTS,
        traffic=(
            Traffic(
                sql="select count(*) from {t} where specimen = $1",
                args=lambda n: (n % 2000,),
                calls=6,
                loop="gather",
            ),
        ),
        expected=one("repeated_statement"),
    ),
    Case(
        name="doctor_of_each",
        setup=filled("doctor_no int primary key, name text", "g, 'Dr. ' || g", rows=3000),
        traffic=(
            Traffic(
                sql="select name from {t} where doctor_no = $1",
                args=lambda n: (n % 3000 + 1,),
                calls=6,
                loop="service",
            ),
        ),
        expected=one("repeated_statement"),
    ),
    Case(
        name="pasted_number",
        setup=RESULTS,
        traffic=(
            Traffic(
                sql="select value from {t} where result_no = %d and analyte = 'K'",
                args=lambda n: (n % 6000 + 1,),
                calls=6,
                loop="literals",
            ),
        ),
        expected=one("repeated_statement"),
    ),
    Case(
        name="lazy_names",
        setup=filled("id int primary key, name text not null", "g, 'ward ' || g", rows=3000),
        traffic=(
            Traffic(sql="select name from {t} where id = $1", args=lambda n: (n + 1,), calls=6, loop="orm"),
        ),
        expected=one("repeated_statement"),
    ),
    Case(
        name="on_one_connection",
        setup=RESULTS,
        traffic=(
            Traffic(
                sql="select max(value) from {t} where specimen = $1",
                args=lambda n: (n % 2000,),
                calls=6,
                loop="held",
            ),
        ),
        expected=one("repeated_statement"),
    ),
    Case(
        name="loop_in_loop",
        setup=RESULTS,
        traffic=(
            Traffic(
                sql="select value from {t} where specimen = $1 and analyte = 'K'",
                args=lambda n: (n % 2000,),
                calls=6,
                loop="nested",
            ),
        ),
        expected=one("repeated_statement"),
    ),
    Case(
        name="line_by_line",
        setup="create table {t} (line_no bigint generated always as identity primary key,"
        " order_no bigint not null, test text not null)",
        traffic=(
            Traffic(
                sql="insert into {t} (order_no, test) values ($1, 'TSH')",
                args=lambda n: (n,),
                calls=6,
                loop="in_transaction",
            ),
        ),
        expected=one("repeated_statement"),
    ),
    Case(
        name="worklist_page",
        setup=filled(
            "item_no bigint primary key, taken_on date not null, title text",
            f"g, {DAY}, {NOTE}",
            "create index {t}_newest on {t} (taken_on desc, item_no desc)",
        ),
        traffic=(
            Traffic(
                sql="select item_no, title from {t} order by taken_on desc, item_no desc limit 25 offset $1",
                args=lambda n: (1000 + n * 900,),
            ),
        ),
        expected=one("deep_offset"),
    ),
    Case(
        name="audit_fetch_next",
        setup=filled("audit_no bigint primary key, what text", f"g, {NOTE}"),
        traffic=(
            Traffic(
                sql="select audit_no, what from {t} order by audit_no offset $1 rows fetch next 50 rows only",
                args=lambda n: (2000 + n * 700,),
            ),
        ),
        expected=one("deep_offset"),
    ),
    Case(
        name="whole_message",
        setup=filled(
            "message_no bigint primary key, sender text, receiver text, kind text, version text,"
            " received_at timestamptz, ack text, body text",
            f"g, 'A', 'B', 'ORU', '2.5', {HOUR}, 'AA', repeat(md5(g::text), 40)",
            rows=2500,
        ),
        traffic=(Traffic(sql="select * from {t} where message_no = $1", args=lambda n: (n + 1,)),),
        expected=one("select_star"),
    ),
    Case(
        name="star_of_joined",
        setup=filled("patient_no int primary key, surname text", "g, 'P' || g", name="{t}__patient", rows=500)
        + ";"
        + filled(
            "letter_no bigint primary key, patient_no int not null references {t}__patient, salutation text,"
            " opening text, closing text, signed_by text, sent_at timestamptz, html text",
            f"g, g % 500 + 1, 'Dear', 'a', 'b', 'c', {HOUR}, repeat(md5(g::text), 40)",
            "create index {t}_patient on {t} (patient_no)",
            rows=2500,
        ),
        traffic=(
            Traffic(
                sql="select d.*, p.surname from {t} d join {t}__patient p using (patient_no)"
                " where d.patient_no = $1",
                args=lambda n: (n + 1,),
            ),
        ),
        expected=one("select_star"),
    ),
)

INNOCENT = (
    Case(
        name="analyte_codes",
        setup=filled(
            "analyte_no int primary key, code text not null, unit text", "g, 'C' || g, 'mmol/l'", rows=60
        ),
        traffic=(Traffic(sql="select analyte_no, unit from {t} where code = $1", args=lambda n: (f"C{n}",)),),
    ),
    Case(
        name="by_sex",
        setup=filled(
            "patient_no bigint primary key, sex text not null, birth date",
            "g, case when g % 2 = 0 then 'f' else 'm' end, date '1950-01-01' + g",
        ),
        traffic=(
            Traffic(
                sql="select patient_no, birth from {t} where sex = $1", args=lambda n: ("fm"[n % 2],), calls=4
            ),
        ),
    ),
    Case(
        name="shift_analyzer",
        setup=filled(
            "qc_no bigint primary key, analyzer int not null, shift int not null, note text",
            f"g, g % 70, g / 70, {NOTE}",
            "create index {t}_qc on {t} (analyzer, shift)",
        ),
        traffic=(
            Traffic(
                sql="select qc_no, note from {t} where shift = $1 and analyzer = $2",
                args=lambda n: (n, n % 70),
            ),
        ),
    ),
    Case(
        name="open_worklist",
        setup=filled(
            "result_no bigint primary key, received_at timestamptz not null, validated_by int, note text",
            f"g, {HOUR}, case when g % 200 = 0 then null else 1 end, {NOTE}",
            "create index {t}_open on {t} (received_at) where validated_by is null",
        ),
        traffic=(
            Traffic(sql="select result_no from {t} where validated_by is null order by received_at limit 30"),
        ),
    ),
    Case(
        name="email_indexed",
        setup=filled(
            "referrer_no int primary key, email text not null, practice text",
            f"g, 'Dr' || g || '@x.example', {NOTE}",
            "create unique index {t}_email on {t} (lower(email))",
        ),
        traffic=(
            Traffic(
                sql="select referrer_no, practice from {t} where lower(email) = lower($1)",
                args=lambda n: (f"DR{n + 1}@X.example",),
            ),
        ),
    ),
    Case(
        name="ward_of_wider",
        setup=filled(
            "stay_no bigint primary key, ward int not null, bed int not null, note text",
            f"g, g % 900, g % 13, {NOTE}",
            "create index {t}_ward_bed on {t} (ward, bed)",
        ),
        traffic=(
            Traffic(sql="select stay_no, note from {t} where ward = $1", args=lambda n: (n,)),
            Traffic(sql="select stay_no from {t} where ward = $1 and bed = $2", args=lambda n: (n, n % 13)),
        ),
    ),
    Case(
        name="backwards",
        setup=filled(
            "result_no bigint primary key, patient int not null, taken_at timestamptz not null, note text",
            f"g, g % 300, {HOUR}, {NOTE}",
            "create index {t}_taken on {t} (patient, taken_at)",
        ),
        traffic=(
            Traffic(
                sql="select result_no, note from {t} where patient = $1 order by taken_at desc limit 5",
                args=lambda n: (n,),
            ),
        ),
    ),
    Case(
        name="message_once",
        setup=filled(
            "row_no bigint generated by default as identity (start 20000) primary key,"
            " message_id text not null, body text",
            f"g, 'M' || g, {NOTE}",
            "create unique index {t}_once on {t} (message_id)",
        ),
        traffic=(
            Traffic(
                sql="insert into {t} (message_id, body) values ($1, '') on conflict do nothing",
                args=lambda n: (f"M{n * 2 + 9990}",),
            ),
            Traffic(sql="select body from {t} where row_no = $1", args=lambda n: (n + 1,)),
        ),
    ),
    Case(
        name="room_booking",
        setup="create table {t} (booking_no bigint primary key, during tsrange not null,"
        " exclude using gist (during with &&));"
        "insert into {t} select g, tsrange(timestamp '2026-01-01' + g * interval '1 hour',"
        " timestamp '2026-01-01' + (g + 1) * interval '1 hour') from generate_series(1, 2000) g",
        traffic=(Traffic(sql="select during from {t} where booking_no = $1", args=lambda n: (n + 1,)),),
    ),
    Case(
        name="support_of_key",
        setup=filled("panel_no int primary key, title text", "g, 'panel ' || g", name="{t}__panel", rows=900)
        + ";"
        + filled(
            "test_no bigint primary key, panel_no int not null references {t}__panel on delete cascade",
            "g, g % 900 + 1",
            "create index {t}_panel on {t} (panel_no)",
        ),
        traffic=(Traffic(sql="select panel_no from {t} where test_no = $1", args=lambda n: (n + 1,)),),
    ),
    Case(
        name="status_of_list",
        setup=filled("status_no int primary key, title text", "g, 'status ' || g", name="{t}__status", rows=6)
        + ";"
        + filled(
            "order_no bigint primary key, status_no int not null references {t}__status, note text",
            f"g, g % 6 + 1, {NOTE}",
        ),
        traffic=(
            Traffic(
                sql="select o.note, s.title from {t} o join {t}__status s using (status_no)"
                " where order_no = $1",
                args=lambda n: (n + 1,),
            ),
        ),
    ),
    Case(
        name="in_house",
        setup=filled(
            "stay_no bigint primary key, ward int not null, discharged_at timestamptz, note text",
            f"g, g % 100, case when g % 61 < 59 then now() end, {NOTE}",
            "create index {t}_ward on {t} (ward)",
            "create index {t}_present on {t} (ward) where discharged_at is null",
        ),
        traffic=(
            Traffic(sql="select stay_no, note from {t} where ward = $1", args=lambda n: (n,)),
            Traffic(
                sql="select stay_no from {t} where ward = $1 and discharged_at is null",
                args=lambda n: (n + 2,),
            ),
        ),
    ),
    Case(
        name="two_orders",
        setup=filled(
            "visit_no bigint primary key, doctor int not null, patient int not null, note text",
            f"g, g % 400, g * 7 % 3000, {NOTE}",
            "create index {t}_doctor on {t} (doctor, patient)",
            "create index {t}_patient on {t} (patient)",
        ),
        traffic=(
            Traffic(sql="select visit_no from {t} where doctor = $1", args=lambda n: (n,)),
            Traffic(sql="select visit_no, note from {t} where patient = $1", args=lambda n: (n,)),
        ),
    ),
    Case(
        name="two_alphabets",
        setup=filled(
            'patient_no bigint primary key, surname text not null collate "C", note text',
            f"g, md5(g::text), {NOTE}",
            "create index {t}_c on {t} (surname)",
            'create index {t}_posix on {t} (surname collate "POSIX")',
        ),
        traffic=(
            Traffic(sql="select patient_no, note from {t} where surname = $1", args=lambda n: (str(n),)),
            Traffic(
                sql='select patient_no, note from {t} where surname collate "POSIX" > $1'
                ' order by surname collate "POSIX" limit 20',
                args=lambda n: (str(n),),
            ),
        ),
    ),
    Case(
        name="target_of_pair",
        setup=filled(
            "panel_no int primary key, version int not null, title text, unique (panel_no, version)",
            "g, g % 5, 'panel ' || g",
            name="{t}__panel",
            rows=900,
        )
        + ";"
        + filled(
            "test_no bigint primary key, panel_no int not null, version int not null,"
            " foreign key (panel_no, version) references {t}__panel (panel_no, version)",
            "g, g % 900 + 1, (g % 900 + 1) % 5",
        ),
        traffic=(Traffic(sql="select panel_no from {t} where test_no = $1", args=lambda n: (n + 1,)),),
    ),
    Case(
        name="in_chunks",
        setup=RESULTS,
        traffic=(
            Traffic(
                sql="select result_no, value from {t} where result_no = any($1::bigint[])",
                args=lambda n: (list(range(n * 100 + 1, n * 100 + 101)),),
                calls=4,
                loop="sequence",
            ),
        ),
    ),
    Case(
        name="export_by_key",
        setup=RESULTS,
        traffic=(
            Traffic(
                sql="select result_no, value from {t} where result_no > $1 order by result_no limit 200",
                args=lambda n: (n % 12 * 200,),
                calls=4,
                loop="sequence",
            ),
        ),
    ),
    Case(
        name="claim_jobs",
        setup=filled("job_no bigint primary key, body text", f"g, {NOTE}", rows=3000),
        traffic=(
            Traffic(
                sql="delete from {t} where job_no = (select job_no from {t} order by job_no"
                " for update skip locked limit 1) returning job_no",
                calls=4,
                loop="sequence",
            ),
        ),
    ),
    Case(
        name="lines_at_once",
        setup="create table {t} (line_no bigint generated always as identity primary key,"
        " order_no bigint not null, test text not null)",
        traffic=(
            Traffic(
                sql="insert into {t} (order_no, test) select $1, t from unnest($2::text[]) t",
                args=lambda n: (n, ["TSH", "T3", "T4"]),
            ),
        ),
    ),
    Case(
        name="once_per_request",
        setup=RESULTS,
        traffic=(
            Traffic(sql="select analyte, value from {t} where specimen = $1", args=lambda n: (n,), calls=40),
        ),
    ),
    Case(
        name="two_lookups",
        setup=RESULTS,
        traffic=(
            Traffic(
                sql="select value from {t} where result_no = $1",
                args=lambda n: (n % 6000 + 1,),
                calls=10,
                loop="thrice",
            ),
        ),
    ),
    Case(
        name="star_of_narrow",
        setup=filled("unit_no int primary key, code text, factor numeric", "g, 'u' || g, g / 7.0", rows=3000),
        traffic=(Traffic(sql="select * from {t} where unit_no = $1", args=lambda n: (n + 1,)),),
    ),
    Case(
        name="star_in_exists",
        setup=filled(
            "message_no bigint primary key, a text, b text, c text, d text, e text, f text, body text",
            "g, 'a', 'b', 'c', 'd', 'e', 'f', repeat(md5(g::text), 40)",
            rows=2500,
        ),
        traffic=(
            Traffic(
                sql="select exists (select * from {t} where message_no = $1) as known", args=lambda n: (n,)
            ),
            Traffic(
                sql="select count(*) from {t} where message_no between $1 and $2", args=lambda n: (n, n + 9)
            ),
        ),
    ),
    Case(
        name="first_pages",
        setup=filled("item_no bigint primary key, title text", f"g, {NOTE}"),
        traffic=(
            Traffic(
                sql="select item_no, title from {t} order by item_no limit 25 offset $1",
                args=lambda n: (n % 3 * 25,),
                calls=12,
            ),
        ),
    ),
    Case(
        name="fence",
        setup=filled(
            "item_no bigint primary key, box int not null, title text",
            f"g, g % 2000, {NOTE}",
            "create index {t}_box on {t} (box)",
        ),
        traffic=(
            Traffic(
                sql="select title from (select item_no, title from {t} where box = $1 offset 0) b"
                " where title like 'n%'",
                args=lambda n: (n,),
            ),
        ),
    ),
    Case(
        name="monthly_report",
        setup=filled(
            "stay_no bigint primary key, ward int not null, nights int not null", "g, g % 30, g % 9"
        ),
        traffic=(
            Traffic(sql="select ward, sum(nights) as nights from {t} group by ward order by ward", calls=5),
        ),
    ),
    Case(
        name="contains",
        setup=filled("remark_no bigint primary key, remark text", "g, md5(g::text) || md5((g * 3)::text)"),
        traffic=(
            Traffic(
                sql="select remark_no from {t} where remark ilike '%' || $1 || '%' limit 20",
                args=lambda n: (f"ab{n}",),
            ),
        ),
    ),
    Case(
        name="key_and_more",
        setup=filled(
            "letter_no bigint primary key, hospital uuid not null, body text", f"g, {HOSPITAL}, {NOTE}"
        ),
        traffic=(
            Traffic(
                sql="select body from {t} where letter_no = $1 and hospital = $2",
                args=lambda n: (n + 1, hospital((n + 1) % 40)),
            ),
        ),
    ),
    Case(
        name="some_active",
        setup=filled(
            "probe_no bigint primary key, active boolean not null, note text", f"g, g % 4 > 0, {NOTE}"
        ),
        traffic=(Traffic(sql="select probe_no, note from {t} where active limit 10"),),
    ),
    Case(
        name="either_number",
        setup=filled(
            "patient_no bigint primary key, nhs_no int not null, old_no int not null, note text",
            f"g, g + 50000, g * 3, {NOTE}",
            "create index {t}_nhs on {t} (nhs_no)",
            "create index {t}_old on {t} (old_no)",
        ),
        traffic=(
            Traffic(
                sql="select patient_no, note from {t} where nhs_no = $1 or old_no = $1",
                args=lambda n: (n * 3 + 50001,),
            ),
        ),
    ),
    Case(
        name="mostly_living",
        setup=filled(
            "patient_no bigint primary key, died_on date, birth date",
            "g, case when g % 50 = 0 then date '2026-01-01' end, date '1950-01-01' + g",
        ),
        traffic=(Traffic(sql="select patient_no, birth from {t} where died_on is null", calls=4),),
    ),
)

LAB: tuple[Case, ...] = (*PLANTED_MISSING, *PLANTED_INDEXES, *PLANTED_STATEMENTS, *INNOCENT)
