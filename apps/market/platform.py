"""The modules of market, for the app servers, the workers and `springtide db migrate`."""

from __future__ import annotations

from pathlib import Path

from market.analytics import service as analytics
from market.analytics.api import Analytics
from market.analytics.service import AnalyticsService
from market.catalog import service as catalog
from market.catalog.api import Catalog
from market.catalog.jobs import ListingChanged, MediaChanged, StockTurned
from market.content import service as content
from market.content.api import Content
from market.content.jobs import ArticleChanged, ArticleRemoved, Commented, EraseArticle
from market.dashboard import reports
from market.dashboard import service as dashboard
from market.dashboard.api import Dashboard
from market.dashboard.service import DashboardService
from market.indexing import SWEEP_EVERY
from market.media import jobs as media_jobs
from market.media import lifecycle as media_lifecycle
from market.media import service as media
from market.media.api import Media
from market.media.settings import MediaSettings
from market.notifications import service as notifications
from market.notifications.api import Notifications
from market.notifications.jobs import SendMail, SendPush
from market.notifications.settings import NotificationSettings
from market.orders import service as orders
from market.orders.adopting import ADOPT_EVERY
from market.orders.api import OrderEnded, OrderPlaced, Orders
from market.orders.jobs import Advance, Tell
from market.orders.settings import OrderSettings
from market.orders.steps import PLACE
from market.payments import service as payments
from market.payments.api import Payments
from market.payments.settings import PaymentSettings
from market.recommendations import making
from market.recommendations import service as recommendations
from market.recommendations.api import Recommendations
from market.recommendations.service import RecommendationService
from market.search import service as search
from market.search.api import Search
from market.users import service as users
from market.users.api import Users
from market.users.jobs import PersonChanged, PersonJoined, PersonPictured, PersonRenamed
from market.webhooks import service as webhooks
from market.webhooks.api import Webhooks
from market.webhooks.jobs import Deliver, Erase, TellDisabled
from market.webhooks.settings import WebhookSettings
from springtide.events import Group, On
from springtide.jobs import Handler
from springtide.services import Background, Module
from springtide.services.sessions import sessions_module

__all__ = ["modules"]

HERE = Path(__file__).parent


def modules(
    *,
    provider: PaymentSettings | None = None,
    ordering: OrderSettings | None = None,
    outgoing: NotificationSettings | None = None,
    blobs: MediaSettings | None = None,
    hooks: WebhookSettings | None = None,
) -> list[Module]:
    """Declared anew on every call: a platform owns its modules.

    `provider` is how the payment provider is reached, `ordering` how long orders may take, `outgoing` how
    mail and pushes leave, `blobs` where media are kept, `hooks` how webhooks leave; None: as the environment
    says.
    """
    return [
        sessions_module(),
        Module(
            "search",
            migrations=HERE / "search" / "migrations",
            provides=Search,
            factory=search.build,
            background=[
                Background(name="prune", every=search.PRUNE_EVERY, method=search.SearchService.prune)
            ],
        ),
        Module(
            "users",
            migrations=HERE / "users" / "migrations",
            provides=Users,
            factory=users.build,
            requires=[Search, Notifications, Recommendations, Media],
            background=[Background(name="index", every=SWEEP_EVERY, method=users.UserService.index)],
            jobs=[
                Handler(PersonChanged, users.UserService.changed),
                Handler(PersonJoined, users.UserService.joined),
                Handler(PersonRenamed, users.UserService.renamed),
                Handler(PersonPictured, users.UserService.pictured),
                Handler(users.Followed, users.UserService.tell_followed),
            ],
        ),
        Module(
            "content",
            migrations=HERE / "content" / "migrations",
            provides=Content,
            factory=content.build,
            requires=[Search, Notifications],
            background=[Background(name="index", every=SWEEP_EVERY, method=content.ContentService.index)],
            jobs=[
                Handler(ArticleChanged, content.ContentService.changed),
                Handler(ArticleRemoved, content.ContentService.removed),
                Handler(Commented, content.ContentService.tell_commented),
                Handler(EraseArticle, content.ContentService.erase),
            ],
        ),
        Module(
            "catalog",
            migrations=HERE / "catalog" / "migrations",
            provides=Catalog,
            factory=catalog.build,
            requires=[Search, Media, Webhooks],
            background=[
                Background(name="sweep", every=catalog.SWEEP_EVERY, method=catalog.CatalogService.sweep),
                Background(name="index", every=SWEEP_EVERY, method=catalog.CatalogService.index),
            ],
            jobs=[
                Handler(ListingChanged, catalog.CatalogService.changed),
                Handler(MediaChanged, catalog.CatalogService.attach),
                Handler(StockTurned, catalog.CatalogService.tell_turned),
            ],
        ),
        Module(
            "payments",
            migrations=HERE / "payments" / "migrations",
            provides=Payments,
            factory=payments.build,
            background=[
                Background(name="reconcile", every=payments.RECONCILE_EVERY, method=payments.reconcile)
            ],
            settings=provider or PaymentSettings.from_environment(),
        ),
        Module(
            "recommendations",
            migrations=HERE / "recommendations" / "migrations",
            provides=Recommendations,
            factory=recommendations.build,
            jobs=[
                Handler(making.Tally, RecommendationService.tally),
                Handler(making.MakeList, RecommendationService.make_list),
                Handler(making.CopyFollow, RecommendationService.copy_follow),
                Handler(making.MakeAuthors, RecommendationService.make_authors),
            ],
            background=[
                Background(name="refresh", every=making.REFRESH_EVERY, method=RecommendationService.refresh)
            ],
        ),
        Module(
            "dashboard",
            migrations=HERE / "dashboard" / "migrations",
            provides=Dashboard,
            factory=dashboard.build,
            requires=[Media],
            jobs=[Handler(reports.MakeReport, DashboardService.make_report)],
            background=[
                Background(name="forget", every=reports.FORGET_EVERY, method=DashboardService.forget)
            ],
        ),
        Module(
            "orders",
            migrations=HERE / "orders" / "migrations",
            provides=Orders,
            factory=orders.build,
            requires=[Catalog, Payments, Notifications, Recommendations, Dashboard, Webhooks],
            jobs=[Handler(Tell, orders.OrderService.tell), Handler(Advance, orders.OrderService.advance)],
            workflows=[PLACE],
            background=[Background(name="adopt", every=ADOPT_EVERY, method=orders.OrderService.adopt)],
            publishes=[OrderPlaced, OrderEnded],
            settings=ordering or OrderSettings.from_environment(),
        ),
        Module(
            "analytics",
            migrations=HERE / "analytics" / "migrations",
            provides=Analytics,
            factory=analytics.build,
            groups=[
                Group(
                    "analytics.days",
                    [
                        On(OrderPlaced, AnalyticsService.placed, "transactional", batch=analytics.BATCH),
                        On(OrderEnded, AnalyticsService.ended, "transactional", batch=analytics.BATCH),
                    ],
                    source="orders",
                )
            ],
        ),
        Module(
            "notifications",
            migrations=HERE / "notifications" / "migrations",
            provides=Notifications,
            factory=notifications.build,
            background=[
                Background(
                    name="tidy",
                    every=notifications.TIDY_EVERY,
                    method=notifications.NotificationService.tidy,
                )
            ],
            jobs=[
                Handler(SendMail, notifications.NotificationService.send_mail),
                Handler(SendPush, notifications.NotificationService.send_push),
            ],
            settings=outgoing or NotificationSettings.from_environment(),
        ),
        Module(
            "webhooks",
            migrations=HERE / "webhooks" / "migrations",
            provides=Webhooks,
            factory=webhooks.build,
            requires=[Notifications],
            jobs=[
                Handler(Deliver, webhooks.WebhookService.deliver),
                Handler(Erase, webhooks.WebhookService.erase),
                Handler(TellDisabled, webhooks.WebhookService.tell_disabled),
            ],
            background=[
                Background(name="tidy", every=webhooks.TIDY_EVERY, method=webhooks.WebhookService.tidy)
            ],
            settings=hooks or WebhookSettings.from_environment(),
        ),
        Module(
            "media",
            migrations=HERE / "media" / "migrations",
            provides=Media,
            factory=media.build,
            jobs=[Handler(media_jobs.Render, media_jobs.render), Handler(media_jobs.Erase, media_jobs.erase)],
            background=[
                Background(name="expire", every=media_lifecycle.EXPIRE_EVERY, method=media_lifecycle.expire),
                Background(name="revive", every=media_lifecycle.REVIVE_EVERY, method=media_lifecycle.revive),
                Background(name="sweep", every=media_lifecycle.SWEEP_EVERY, method=media.MediaService.sweep),
            ],
            settings=blobs or MediaSettings.from_environment(),
        ),
    ]
