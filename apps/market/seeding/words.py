# ruff: noqa: SIM905 - word lists read better as lines of words
"""Words for seeded people, articles and wares. Plain English, no markup, nothing that is anybody's text."""

from __future__ import annotations

__all__ = [
    "CITIES",
    "FIRST",
    "LAST",
    "LOOKS",
    "NOUNS",
    "OPENINGS",
    "PLACES",
    "PRAISE",
    "QUALITIES",
    "SENTENCES",
    "SHOPS",
    "STEMS",
    "WARES",
]

FIRST = (
    "ada aiko amara ana anders asha bela bruno carla chen dalia daniel dario elena elif emil eva"
    " farid fatima felix freya gita grace hana hugo ida ines ivan jamal jana jonas kaito kamal katja"
    " lars leila lena lucia mads malik mara mei milo mina nadia niko noor olga omar oskar paula"
    " pedro priya rafa rosa ruth samir sofia tariq tess vera yusuf"
).split()
LAST = (
    "abe adler alves amari baker bauer berg bose braun carter castro cole costa cruz dahl diaz"
    " dubois eriksen evans farah fischer ford garcia grant haas hansen hayes ito jansen kaur keller"
    " khan kim klein kovac lang larsen lee lima lopez mbeki mehta meyer moreau mori nakai novak"
    " okoye olsen patel perez quinn rao reyes rossi sato silva singh stern sousa tanaka vogel weber"
    " yilmaz"
).split()
OPENINGS = (
    "how to plan;why we chose;the case for;what nobody says about;lessons from;a year with;moving to"
    ";measuring;the limits of;rethinking;getting started with;living with;the cost of;testing"
    ";in praise of;notes on;debugging;the quiet power of;a field guide to;growing;repairing;teaching"
    ";the history of;simplifying"
).split(";")
QUALITIES = (
    "small slow honest boring shared hidden quiet durable open careful modern early late simple"
    " reliable cheap elegant stubborn fragile practical patient local distributed seasonal curious"
    " modest steady bold plain careless hungry gentle rusty bright forgotten borrowed daily weekly"
    " midnight winter"
).split()
NOUNS = (
    "queues gardens databases kitchens interfaces teams caches bridges schedules libraries maps"
    " engines budgets forests deployments workshops protocols harbours indexes markets backups"
    " orchards compilers rivers dashboards bicycles migrations meetings replicas notebooks pipelines"
    " archives sensors radios failures trains habits languages contracts logbooks tides clocks"
    " ledgers letters neighbours telescopes recipes servers journals workflows shelters canals"
    " incidents experiments mountains prototypes monuments festivals lanterns"
).split()
PLACES = (
    "in production;on a budget;for beginners;at scale;without downtime;after ten years;in the north"
    ";by the sea;from scratch;under load;in a small town;with one server;over the weekend"
    ";before breakfast;for a team of two;on an island;in plain words;at night;with friends"
    ";in the open;during a storm;for the long run;in spring;on paper;in a hurry;across time zones"
    ";without meetings;by hand;in three steps;with old tools;for sceptics;after the launch"
    ";in the rain;on the road;between releases;with fewer parts;for everyone;in one afternoon"
    ";without magic;in the real world"
).split(";")
STEMS = (
    "python postgres testing design travel food music history science health writing books"
    " photography running cycling gardening economics privacy security networks hardware games film"
    " education philosophy languages maps climate energy architecture art astronomy biology"
    " chemistry coffee craft data dance devops diy"
).split()
SENTENCES = (
    "We began with the smallest thing that could work and kept a record of what it cost."
    "|Nobody had written down why the old way was chosen, so we asked the people who were there."
    "|The first measurement was wrong, and the second one explained the first."
    "|It is easier to remove a part than to explain what it is for."
    "|Most of the time went into waiting, and most of the waiting was for ourselves."
    "|After a month the numbers were dull, which is the best thing that numbers can be."
    "|There is a difference between a rule and a habit, and this was a habit."
    "|We tried it in one place before we tried it in all of them."
    "|What looked like bad luck turned out to be a schedule."
    "|The answer was in the manual, on a page that everybody had skipped."
    "|Somebody has to be awake when it breaks, so let it break by day."
    "|A good name saved us more work than the clever trick beside it."
    "|The plan survived until lunch, and the afternoon was more interesting."
    "|Two people remembered the same event in opposite order, and both had notes."
    "|It helped to draw it on paper before anybody opened an editor."
    "|In the end the simple version was also the fast one."
    "|We kept the failures in a list, and the list became the best teacher."
    "|The weather changed, and with it every assumption about the roof."
    "|Small steps are slow only for those who count the steps."
    "|Whoever arrives last should be able to read what happened."
    "|If it cannot be undone, it deserves a second pair of eyes."
    "|Old tools are honest: they show where they are worn."
    "|There was one question that we should have asked in the first week."
    "|Now it runs, and nobody has talked about it since."
).split("|")
SHOPS = "Studio;Workshop;House of;Atelier;Corner of;Gallery;Store of;Hands of".split(";")
LOOKS = (
    "plain blue amber striped small tall round folded handmade restored vintage soft bright heavy light"
    " speckled woven carved matte quiet northern harbour winter garden travel everyday"
).split()
WARES = {
    "fiction": "novel;collection of short stories;paperback mystery;sea story;signed first edition",
    "non-fiction": "atlas;history of bridges;guide to the night sky;notebook of recipes;book of maps",
    "comics": "comic album;graphic novel;collected strips;picture story;pocket comic",
    "children-books": "picture book;book of bedtime stories;alphabet book;pop-up book;riddle book",
    "kitchen": "bread knife;kettle;cutting board;mixing bowl;tea towel;pepper mill",
    "furniture": "side table;bookshelf;stool;writing desk;coat stand;bench",
    "lighting": "table lamp;lantern;floor lamp;reading light;paper shade",
    "textiles": "blanket;cushion;tablecloth;curtain;rug;throw",
    "women": "wool coat;linen dress;cardigan;silk scarf;rain jacket",
    "men": "work shirt;corduroy jacket;knitted vest;linen trousers;flat cap",
    "children-clothing": "romper;pair of mittens;rain suit;knitted hat;play shirt",
    "accessories": "leather belt;canvas bag;pair of gloves;umbrella;card holder",
    "audio": "radio;pair of headphones;record player;loudspeaker;microphone",
    "computers": "keyboard;single-board computer;monitor stand;trackball;laptop sleeve",
    "phones": "phone case;charging stand;pair of earbuds;phone tripod;battery pack",
    "cameras": "film camera;lens;camera strap;light meter;tripod",
    "prints": "linocut;letterpress card;screen print;map print;risograph poster",
    "ceramics": "mug;vase;serving plate;teapot;planter",
    "jewellery": "pair of earrings;silver ring;necklace;brooch;bracelet",
    "supplies": "set of brushes;sketchbook;box of pastels;easel;roll of canvas",
    "plants": "fern;monstera;olive tree;cactus;ivy",
    "seeds": "packet of poppy seeds;tomato seeds;herb seeds;meadow mix;sunflower seeds",
    "tools": "pair of shears;trowel;watering can;rake;pruning knife",
}
"""Category -> what is sold in it, with ; between."""
PRAISE = (
    "Made in small numbers and packed with care."
    "|It has been used once, and it still looks as it did on the first day."
    "|The colour is a little warmer than in the picture."
    "|It was made to be repaired, and we keep the parts."
    "|Sent within two days, in paper and card only."
    "|Every piece is slightly different, which is how you know that hands were involved."
    "|It will outlast the fashion that it ignores."
    "|Measured twice and cut once, as it should be."
    "|If it does not suit you, send it back and tell us why."
    "|Good for a small room, better for a large one."
).split("|")
CITIES = (
    "Aarhus DK;Bergen NO;Bologna IT;Bristol GB;Ghent BE;Gdansk PL;Graz AT;Leipzig DE;Lyon FR;Malmo SE"
    ";Porto PT;Tartu EE;Turku FI;Utrecht NL;Valencia ES;Brno CZ"
).split(";")
"""A city and its country, by ISO 3166."""
