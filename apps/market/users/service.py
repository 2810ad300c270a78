"""Registration, login, profiles and follows, over the module's own tables."""

from __future__ import annotations

import msgspec
from msgspec import UNSET

from market.checks import Checks
from market.faults import NotFound, Taken
from market.indexing import Sweep
from market.media.api import Media
from market.moments import moment
from market.notifications.api import Notice, Notifications, Recipient
from market.recommendations.api import Recommendations
from market.search.api import Document, Search
from market.users.api import Account, AccountChanges, NewAccount, Profile, face_of
from market.users.indexing import document
from market.users.jobs import PersonChanged, PersonJoined, PersonPictured, PersonRenamed
from market.users.rules import check_changes, check_login, check_new, fold, is_username
from market.users.store import AccountRow, Person, UserStore
from springtide.clock import Clock
from springtide.db import Consistency
from springtide.errors import AlreadyReserved, Unavailable
from springtide.identity.passwords import Passwords
from springtide.jobs import Run, job
from springtide.services import ModuleContext

__all__ = ["Followed", "UserService", "build"]

MAX_FOLLOWING = 5_000
ATTEMPTS = 5


@job(kind="users.followed")
class Followed(msgspec.Struct, frozen=True):
    """Whether one follows the other has changed. What it is now is read when the job runs."""

    follower: int
    followee: int


def build(context: ModuleContext) -> UserService:
    return UserService(
        _store(context),
        recommendations=context.service(Recommendations),
        search=context.service(Search),
        notifications=context.service(Notifications),
        media=context.service(Media),
        passwords=context.passwords,
        clock=context.clock,
    )


def _store(context: ModuleContext) -> UserStore:
    if not context.cached:
        return UserStore(context.db)
    from market.users.cached import CachedUsers

    return CachedUsers(context.db, context.cache)


class UserService:
    """Implements `market.users.api.Users`."""

    def __init__(
        self,
        store: UserStore,
        *,
        recommendations: Recommendations,
        search: Search,
        notifications: Notifications,
        media: Media,
        passwords: Passwords,
        clock: Clock,
    ) -> None:
        self._store = store
        self._recommendations = recommendations
        self._passwords = passwords
        self._clock = clock
        self._search = search
        self._notifications = notifications
        self._media = media
        self._index = Sweep(search, "person", page=store.versions, documents=self._documents)

    async def register(self, new: NewAccount) -> Account:
        new = check_new(new)
        password_hash = await self._passwords.hash(new.password)
        try:
            row = await self._store.insert(
                username=new.username,
                email=new.email,
                password_hash=password_hash,
                at=moment(self._clock),
            )
        except AlreadyReserved as error:
            raise await self._taken(error, {"username": new.username, "email": new.email}) from error
        return _account(row)

    async def authenticate(self, email: str, password: str) -> Account | None:
        check_login(email, password)
        # who logs in brings nothing that says what he has seen, and an old password is no password
        id = await self._store.find("email", email.strip(), consistency=Consistency.STRONG)
        row = None if id is None else await self._store.account(id, consistency=Consistency.STRONG)
        if row is None:
            await self._passwords.verify_nothing(password)
            return None
        verdict = await self._passwords.verify(password, row.password_hash)
        if not verdict.ok:
            return None
        if verdict.needs_rehash:
            await self._store.rehash(row, await self._passwords.hash(password))
        return _account(row)

    async def account(self, id: int) -> Account | None:
        row = await self._store.account(id)
        return None if row is None else _account(row)

    async def update(self, id: int, changes: AccountChanges) -> Account:
        changes = check_changes(changes)
        username = None if changes.username is UNSET else changes.username
        email = None if changes.email is UNSET else changes.email
        password_hash = None
        if changes.password is not UNSET:
            password_hash = await self._passwords.hash(changes.password)
        for _ in range(ATTEMPTS):
            # one that is old by now would change nothing
            known = await self._store.account(id, consistency=Consistency.STRONG)
            if known is None:
                raise NotFound("user")
            try:
                row = await self._store.update(
                    known,
                    username=username,
                    email=email,
                    password_hash=password_hash,
                    bio=changes.bio,
                    image=changes.image,
                    at=moment(self._clock),
                )
            except AlreadyReserved as error:
                wanted = {"username": username, "email": email}
                raise await self._taken(error, wanted, owner=id) from error
            if row is not None:
                return _account(row)
        raise Unavailable("the account was being renamed at the same time", retry_after=1.0)

    async def find(self, username: str) -> int | None:
        if not is_username(username):
            return None
        return await self._store.find("username", username)

    async def profile(self, username: str, viewer: int | None) -> Profile | None:
        id = await self.find(username)
        found = [] if id is None else await self.profiles([id], viewer)
        return found[0] if found else None

    async def profiles(self, ids: list[int], viewer: int | None) -> list[Profile]:
        wanted = sorted(set(ids))
        if not wanted:
            return []
        people = await self._store.people(wanted)
        followed: set[int] = set() if viewer is None else await self._store.followed(viewer, wanted)
        return [_public(person, person.id in followed) for person in people]

    async def follow(self, follower: int, username: str) -> Profile:
        followee = await self._must_find(username)
        if followee == follower:
            checks = Checks()
            checks.fault("profile", "is your own")
            checks.finish()
        news = Followed(follower, followee)
        await self._store.follow(follower, followee, moment(self._clock), news)
        return await self._must_show(followee, following=True)

    async def unfollow(self, follower: int, username: str) -> Profile:
        followee = await self._must_find(username)
        await self._store.unfollow(follower, followee, Followed(follower, followee))
        return await self._must_show(followee, following=False)

    async def following(self, follower: int) -> list[int]:
        return await self._store.following(follower, MAX_FOLLOWING)

    async def tell_followed(self, job: Followed, run: Run) -> None:
        """State and version are read together, and the version grows with each change: whatever the order of
        such calls, the one with the highest version tells the last state.
        """
        now = await self._store.follow_now(job.follower, job.followee)
        if now is not None:
            await self._recommendations.followed(job.follower, job.followee, now.following, now.version)

    async def changed(self, job: PersonChanged, run: Run) -> None:
        """A job's handler."""
        await self._search.put(await self._documents([job.person_id]))

    async def joined(self, job: PersonJoined, run: Run) -> None:
        """A job's handler."""
        await self._introduce(job.person_id)
        welcome = Notice(recipient=job.person_id, kind="welcome", key="joined", link="/")
        await self._notifications.notify(welcome)

    async def renamed(self, job: PersonRenamed, run: Run) -> None:
        """A job's handler."""
        await self._introduce(job.person_id)

    async def pictured(self, job: PersonPictured, run: Run) -> None:
        """A job's handler. Somebody else's medium is not attached."""
        row = await self._store.account(job.person_id)
        if row is not None:
            face = face_of(row.image)
            ids = [] if face is None else [face]
            await self._media.attach(row.id, f"person:{row.id}", ids, row.version)

    async def _introduce(self, id: int) -> None:
        row = await self._store.account(id)
        if row is not None:
            person = Recipient(id=id, name=row.username, email=row.email, version=row.version)
            await self._notifications.introduce(person)

    async def index(self) -> None:
        """For the workers, periodically."""
        await self._index.round()

    async def _documents(self, ids: list[int]) -> list[Document]:
        people = await self._store.people(ids)
        return [document(person.id, person.version, person.username, person.bio) for person in people]

    async def _must_find(self, username: str) -> int:
        id = await self.find(username)
        if id is None:
            raise NotFound("profile")
        return id

    async def _must_show(self, id: int, *, following: bool) -> Profile:
        person = await self._store.person(id)
        if person is None:
            raise NotFound("profile")
        return _public(person, following)

    async def _taken(
        self, error: AlreadyReserved, wanted: dict[str, str | None], owner: int | None = None
    ) -> Taken:
        """All of `wanted` that are somebody else's; the reservation stops at the first."""
        fields = {error.kind}
        for kind, value in wanted.items():
            if value is not None and kind not in fields:
                holder = await self._store.find(kind, fold(value), consistency=Consistency.STRONG)
                if holder is not None and holder != owner:
                    fields.add(kind)
        return Taken(*sorted(fields))


def _account(row: AccountRow) -> Account:
    return Account(id=row.id, username=row.username, email=row.email, bio=row.bio, image=row.image)


def _public(person: Person, following: bool) -> Profile:
    return Profile(
        id=person.id,
        username=person.username,
        bio=person.bio,
        image=person.image,
        following=following,
        version=person.version,
    )
