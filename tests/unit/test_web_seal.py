"""The sealed token: what is believed, for how long, and what is not."""

from __future__ import annotations

import re
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from springtide._marks import ALL, MAX_MARKS, NEITHER, SECOND, Mark
from springtide.context import DOUBT, LOST, UNREACHABLE_EPOCH, CausalityToken, Position
from springtide.errors import ConfigurationError
from springtide.web._seal import MAX_CHARS, CausalityKeys, Seal, Sealed, Seen, new_client, new_key

NOW = 1_800_000_000.0

names = st.text("abcxyz019-_", min_size=1, max_size=20)
witnesses = st.sampled_from([None, DOUBT, "0123456789ab", "ba9876543210"])
seen = st.builds(
    Seen,
    st.builds(Position, st.integers(1, 2**31), st.integers(0, 2**64 - 1)),
    st.integers(int(NOW) - 59, int(NOW)),
    witnesses,
)
carried = st.builds(
    Sealed,
    st.integers(0, 2**32).map(lambda number: f"{number:012}"),
    st.dictionaries(names, seen, max_size=8),
    st.just(0) | st.integers(int(NOW) + 1, int(NOW) + 100),
    st.dictionaries(
        names,
        st.builds(
            Mark,
            st.sampled_from(["0a1b2c3d4e", NEITHER]),
            st.integers(0, 2**53),
            st.integers(int(NOW) + 1, int(NOW) + 120),
        ),
        max_size=MAX_MARKS,
    ),
)


def sealer(*lines: str, name: str = "shop", clusters: list[str] | None = None) -> Seal:
    return Seal(CausalityKeys(lines), name=name, lifetime=60.0, clusters=clusters)


KEY, OTHER = new_key(), new_key()


@given(carried)
def test_what_was_sealed_opens_as_it_was(sealed: Sealed) -> None:
    """In characters that a cookie and a header may have, without the comma that separates headers."""
    text = sealer(KEY).seal(sealed, NOW)
    assert re.fullmatch(r"[A-Za-z0-9._-]+", text)
    assert sealer(KEY).open(text, NOW) == sealed


@given(carried, st.data())
def test_a_token_that_was_touched_is_not_believed(sealed: Sealed, data: st.DataObject) -> None:
    """One character that is another makes it worthless, wherever it is."""
    text = sealer(KEY).seal(sealed, NOW)
    place = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.sampled_from("AZaz09._-").filter(lambda character: character != text[place]))
    assert isinstance(sealer(KEY).open(text[:place] + other + text[place + 1 :], NOW), str)


@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda data: data.decode("latin-1")))
def test_nonsense_is_malformed_and_raises_nothing(text: str) -> None:
    """Whatever a stranger sends."""
    assert sealer(KEY).open(text, NOW) in ("malformed", "foreign", "forged")


def test_a_token_of_another_platform_or_key_is_foreign() -> None:
    """Also when both have the same secret: names keep them apart."""
    sealed = Sealed(new_client(), {"main": Seen(Position(1, 5), int(NOW))})
    text = sealer(KEY).seal(sealed, NOW)
    assert sealer(OTHER).open(text, NOW) == "foreign"
    assert sealer(KEY, name="other").open(text, NOW) == "foreign"
    kid = sealer(OTHER).seal(sealed, NOW).split(".")[1]
    forged = ".".join(["1", kid, *text.split(".")[2:]])
    assert sealer(OTHER).open(forged, NOW) == "forged"
    assert sealer(KEY).open("1" + text, NOW) == "malformed"
    assert sealer(KEY).open(text + "x" * MAX_CHARS, NOW) == "malformed"


def test_keys_rotate_without_a_gap() -> None:
    """One that is listed second opens, the first one seals."""
    sealed = Sealed(new_client(), {"main": Seen(Position(1, 5), int(NOW))})
    before, during, after = sealer(KEY), sealer(OTHER, KEY), sealer(OTHER)
    for made, opened in [(before, during), (during, after), (during, during)]:
        assert opened.open(made.seal(sealed, NOW), NOW) == sealed
    assert after.open(before.seal(sealed, NOW), NOW) == "foreign"


def test_each_position_expires_by_when_it_was_seen() -> None:
    """The younger one stays; a token of which nothing is left has expired; clocks may differ a little."""
    old, young = Seen(Position(1, 5), int(NOW) - 50), Seen(Position(1, 9), int(NOW))
    text = sealer(KEY).seal(Sealed(new_client(), {"a": old, "b": young}), NOW)
    left = sealer(KEY).open(text, NOW + 10)
    assert isinstance(left, Sealed) and left.seen == {"b": young}
    assert sealer(KEY).open(text, NOW + 60) == "expired"
    assert sealer(KEY).open(text, NOW - 120) == "expired"
    assert isinstance(sealer(KEY).open(text, NOW - 5), Sealed)


def test_a_token_that_says_nothing_does_not_expire() -> None:
    """It is how a client that has seen nothing shows that it brings tokens."""
    text = sealer(KEY).seal(Sealed(new_client()), NOW)
    assert isinstance(sealer(KEY).open(text, NOW + 1000), Sealed)


def test_positions_of_clusters_that_are_not_there_are_dropped() -> None:
    """They would be asked for in vain; the others stay, and nothing is wrong with the token."""
    seen = Seen(Position(1, 5), int(NOW))
    text = sealer(KEY).seal(Sealed(new_client(), {"main": seen, "gone": seen}), NOW)
    left = sealer(KEY, clusters=["main"]).open(text, NOW)
    assert isinstance(left, Sealed) and left.seen == {"main": seen}
    assert isinstance(sealer(KEY, clusters=["new"]).open(text, NOW), Sealed)


def test_a_token_too_long_to_carry_pins_the_session_instead() -> None:
    """Nothing is forgotten: a session that saw too many clusters reads from the primaries."""
    many = {f"cluster-{number}": Seen(Position(1, 2**40), int(NOW)) for number in range(200)}
    text = sealer(KEY).seal(Sealed(new_client(), many), NOW)
    assert len(text) <= MAX_CHARS
    left = sealer(KEY).open(text, NOW)
    assert isinstance(left, Sealed) and left.pinned_until > NOW
    token = CausalityToken()
    left.tell(token)
    assert token.marks == {ALL: Mark(NEITHER, 0, left.pinned_until)}  # it may have had some
    asked = token.position("cluster-7")
    assert asked is not None and asked.epoch == UNREACHABLE_EPOCH
    done = sealer(KEY).open(text, NOW + 61)
    assert done == "expired"


@given(carried, carried)
def test_merged_tokens_say_what_both_said(one: Sealed, other: Sealed) -> None:
    """The later position, and a witness of either; two of them leave doubt. The order does not matter."""
    tokens = []
    for first, second in [(one, other), (other, one)]:
        merged = Sealed(first.client)
        merged.merge(first)
        merged.merge(second)
        token = CausalityToken()
        merged.tell(token)
        tokens.append(token)
    assert tokens[0] == tokens[1]
    for cluster in one.seen.keys() | other.seen.keys():
        theirs = [s.seen[cluster] for s in (one, other) if cluster in s.seen]
        assert tokens[0].positions[cluster] == max(seen.position for seen in theirs)
        said = {seen.witness for seen in theirs} - {None}
        expected = None if not said else said.pop() if len(said) == 1 else DOUBT
        assert tokens[0].witnesses.get(cluster) == expected


def test_what_was_not_seen_again_keeps_its_time() -> None:
    """So a position does not live for ever with a client that goes on asking; a witness is renewed."""
    before = Sealed(
        "c" * 12,
        {
            "old": Seen(Position(1, 5), int(NOW) - 40),
            "moved": Seen(Position(1, 5), int(NOW) - 40),
            "watched": Seen(Position(1, 5), int(NOW) - 40, "0123456789ab"),
            "fresh": Seen(Position(1, 5), int(NOW) - 4, "0123456789ab"),
        },
    )
    token = CausalityToken()
    before.tell(token)
    token.observe("moved", Position(1, 6))
    token.observe("new", Position(2, 1))
    after = before.after(token, NOW, renew=15.0)
    ages = {cluster: int(NOW) - seen.at for cluster, seen in after.seen.items()}
    assert ages == {"old": 40, "moved": 0, "watched": 0, "fresh": 4, "new": 0}
    assert before.is_due(NOW, 15.0) and not after.is_due(NOW, 15.0)


def test_marks_are_carried_until_they_end_and_no_longer_than_what_is_sealed() -> None:
    """One that nobody knows the end of does not make a client avoid the cache for ever."""
    token = CausalityToken()
    token.mark("users", Mark("aa", 7, int(NOW) + 30))
    token.mark("items", Mark("aa", 8, int(NOW)))
    after = Sealed(new_client()).after(token, NOW, renew=15.0)
    assert after.marks == {"users": Mark("aa", 7, int(NOW) + 30)}
    text = sealer(KEY).seal(after, NOW)
    opened = sealer(KEY).open(text, NOW + 29)
    assert isinstance(opened, Sealed) and opened.marks == after.marks
    assert sealer(KEY).open(text, NOW + 30) == "expired"
    lost = Sealed(new_client()).after(CausalityToken.decode(LOST), NOW, renew=15.0)
    opened = sealer(KEY).open(sealer(KEY).seal(lost, NOW), NOW)
    assert isinstance(opened, Sealed) and opened.marks == {ALL: Mark(NEITHER, 0, int(NOW) + 120)}


def test_a_browser_covers_marks_that_end_no_later() -> None:
    """What it came back with is not waited for any more; what has ended is not, either."""
    late = Sealed("c" * 12, marks={"users": Mark("aa", 7, int(NOW) + 30)})
    early = Sealed("c" * 12, marks={"users": Mark("aa", 6, int(NOW) + 20)})
    wide = Sealed("c" * 12, marks={ALL: Mark(SECOND, 0, int(NOW) + 40)})
    assert late.covers(early, NOW) and not early.covers(late, NOW)
    assert wide.covers(late, NOW) and not Sealed("c" * 12).covers(late, NOW)
    assert Sealed("c" * 12).covers(late, NOW + 30)


def test_a_key_file_is_made_once_and_is_its_owners_alone(tmp_path: Path) -> None:
    """Whoever comes second reads what the first one made; one that others may read is refused."""
    path = tmp_path / "secrets" / "causality.key"
    first, second = CausalityKeys.load_or_create(path), CausalityKeys.load_or_create(path)
    assert first.of("shop") == second.of("shop")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    with pytest.raises(ConfigurationError, match="only its owner may read it"):
        CausalityKeys.load_or_create(path)


@pytest.mark.parametrize(
    "lines",
    [[], ["# nothing"], ["ed25519 " + KEY.split()[1]], ["hmac-sha256 AAAA"], ["hmac-sha256 !!"], [KEY, KEY]],
)
def test_faulty_keys_are_named_by_their_line_and_never_shown(lines: list[str]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        CausalityKeys(lines, source="the file")
    assert "the file" in str(caught.value)
    assert not any(line.split()[1] in str(caught.value) for line in lines if not line.startswith("#"))
