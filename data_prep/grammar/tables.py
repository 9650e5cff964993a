"""The word lists of the embedded language, as plain text tables.

One entry a line: `English forms | German alternatives`, the alternatives separated by ` / ` and each preceded by its
probability where there are several. Entries stand in order of frequency: the first are drawn often, the last are rare.

Nouns: `singular [plural]` (regular plurals are left out) `| gender singular plural`; `m*` is the weak masculine
declension (der Junge, den Jungen). Adjectives: `lemma` or `lemma:stem` where the stem differs (teuer, ein teures).
Verbs: `base [particle][, third, past, participle]` (left out where regular) `| infinitive [third past participle]`;
a bar marks a separable prefix, `+s` the auxiliary sein, `@dat` an object in the dative, `@auf+acc` a prepositional
object, a leading `sich` a reflexive verb.
"""

PERSONS = """
man men | 0.75 m Mann Männer / 0.25 m Kerl Kerle
woman women | 0.7 f Frau Frauen / 0.3 f Dame Damen
child children | n Kind Kinder
teacher | 0.75 m Lehrer Lehrer / 0.25 m* Pädagoge Pädagogen
boy | 0.7 m* Junge Jungen / 0.3 m* Knabe Knaben
girl | 0.75 n Mädchen Mädchen / 0.25 n Mädel Mädel
friend | 0.7 m Freund Freunde / 0.3 m Kumpel Kumpel
doctor | 0.75 m Arzt Ärzte / 0.25 m Doktor Doktoren
mother | 0.65 f Mutter Mütter / 0.35 f Mama Mamas
father | 0.65 m Vater Väter / 0.35 m Papa Papas
neighbour | m* Nachbar Nachbarn
student | 0.6 m* Student Studenten / 0.4 m Schüler Schüler
brother | m Bruder Brüder
sister | f Schwester Schwestern
colleague | m* Kollege Kollegen
grandmother | 0.55 f Großmutter Großmütter / 0.45 f Oma Omas
farmer | 0.65 m* Bauer Bauern / 0.35 m Landwirt Landwirte
artist | m Künstler Künstler
guest | 0.7 m Gast Gäste / 0.3 m Besucher Besucher
policeman policemen | m* Polizist Polizisten
king | 0.75 m König Könige / 0.25 m Herrscher Herrscher
queen | f Königin Königinnen
writer | 0.5 m Autor Autoren / 0.5 m Schriftsteller Schriftsteller
uncle | m Onkel Onkel
aunt | f Tante Tanten
customer | m* Kunde Kunden
judge | m Richter Richter
soldier | m* Soldat Soldaten
baker | m Bäcker Bäcker
thief thieves | 0.7 m Dieb Diebe / 0.3 m Räuber Räuber
"""

ANIMALS = """
dog | 0.8 m Hund Hunde / 0.2 m Köter Köter
cat | 0.7 f Katze Katzen / 0.3 m Kater Kater
horse | 0.7 n Pferd Pferde / 0.3 m Gaul Gäule
bird | m Vogel Vögel
cow | f Kuh Kühe
mouse mice | f Maus Mäuse
rabbit | 0.55 n Kaninchen Kaninchen / 0.45 m* Hase Hasen
bear | m* Bär Bären
wolf wolves | m Wolf Wölfe
fox foxes | m Fuchs Füchse
lion | m* Löwe Löwen
goat | f Ziege Ziegen
monkey | m* Affe Affen
elephant | m* Elefant Elefanten
"""

THINGS = """
book | 0.8 n Buch Bücher / 0.2 m Band Bände
car | 0.65 n Auto Autos / 0.35 m Wagen Wagen
letter | 0.7 m Brief Briefe / 0.3 n Schreiben Schreiben
picture | 0.7 n Bild Bilder / 0.3 n Foto Fotos
table | m Tisch Tische
key | m Schlüssel Schlüssel
door | 0.75 f Tür Türen / 0.25 f Pforte Pforten
bag | 0.7 f Tasche Taschen / 0.3 m Beutel Beutel
apple | m Apfel Äpfel
window | n Fenster Fenster
chair | 0.6 m Stuhl Stühle / 0.4 m Sessel Sessel
bicycle | 0.7 n Fahrrad Fahrräder / 0.3 n Rad Räder
flower | 0.75 f Blume Blumen / 0.25 f Blüte Blüten
gift | 0.7 n Geschenk Geschenke / 0.3 f Gabe Gaben
story stories | 0.7 f Geschichte Geschichten / 0.3 f Erzählung Erzählungen
cup | 0.7 f Tasse Tassen / 0.3 m Becher Becher
bottle | f Flasche Flaschen
hat | 0.65 m Hut Hüte / 0.35 f Mütze Mützen
coat | 0.75 m Mantel Mäntel / 0.25 f Jacke Jacken
computer | 0.6 m Computer Computer / 0.4 m Rechner Rechner
cake | 0.7 m Kuchen Kuchen / 0.3 f Torte Torten
song | n Lied Lieder
ball | m Ball Bälle
boat | 0.65 n Boot Boote / 0.35 m Kahn Kähne
tree | m Baum Bäume
newspaper | 0.7 f Zeitung Zeitungen / 0.3 n Blatt Blätter
telephone | 0.5 n Telefon Telefone / 0.5 n Handy Handys
knife knives | n Messer Messer
ring | m Ring Ringe
lamp | 0.6 f Lampe Lampen / 0.4 n Licht Lichter
shoe | m Schuh Schuhe
ship | 0.75 n Schiff Schiffe / 0.25 m Dampfer Dampfer
stone | m Stein Steine
map | f Karte Karten
mirror | m Spiegel Spiegel
guitar | f Gitarre Gitarren
basket | m Korb Körbe
coin | 0.7 f Münze Münzen / 0.3 n Geldstück Geldstücke
candle | f Kerze Kerzen
sword | n Schwert Schwerter
"""

PLACES = """
house | 0.75 n Haus Häuser / 0.25 n Gebäude Gebäude
garden | m Garten Gärten
city cities | 0.75 f Stadt Städte / 0.25 f Metropole Metropolen
school | f Schule Schulen
street | 0.7 f Straße Straßen / 0.3 m Weg Wege
room | 0.7 n Zimmer Zimmer / 0.3 m Raum Räume
forest | 0.75 m Wald Wälder / 0.25 m Forst Forste
park | m Park Parks
village | 0.7 n Dorf Dörfer / 0.3 f Ortschaft Ortschaften
kitchen | f Küche Küchen
shop | 0.6 m Laden Läden / 0.4 n Geschäft Geschäfte
office | n Büro Büros
church churches | f Kirche Kirchen
hospital | 0.7 n Krankenhaus Krankenhäuser / 0.3 f Klinik Kliniken
station | 0.8 m Bahnhof Bahnhöfe / 0.2 f Station Stationen
river | 0.75 m Fluss Flüsse / 0.25 m Strom Ströme
bridge | f Brücke Brücken
market | m Markt Märkte
castle | 0.6 n Schloss Schlösser / 0.4 f Burg Burgen
restaurant | 0.75 n Restaurant Restaurants / 0.25 n Lokal Lokale
mountain | m Berg Berge
hotel | 0.7 n Hotel Hotels / 0.3 m Gasthof Gasthöfe
library libraries | 0.6 f Bibliothek Bibliotheken / 0.4 f Bücherei Büchereien
field | 0.6 n Feld Felder / 0.4 m Acker Äcker
museum | n Museum Museen
tower | m Turm Türme
harbour | m Hafen Häfen
factory factories | f Fabrik Fabriken
"""

# The third field names what an adjective may stand beside: p persons and animals, t things and places, a anything.
ADJECTIVES = """
old | 0.75 alt / 0.25 uralt | a
new | 0.75 neu / 0.25 modern | t
big | 0.65 groß / 0.35 riesig | a
small | 0.75 klein / 0.25 winzig | a
young | jung | p
beautiful | 0.6 schön / 0.4 hübsch | a
red | 0.8 rot / 0.2 rötlich | t
good | 0.7 gut / 0.3 hervorragend | a
friendly | 0.7 freundlich / 0.3 nett | p
happy | 0.5 glücklich / 0.3 froh / 0.2 fröhlich | p
expensive | 0.75 teuer:teur / 0.25 kostspielig | t
white | weiß | t
dark | 0.7 dunkel:dunkl / 0.3 finster | t
tired | 0.75 müde:müd / 0.25 erschöpft | p
black | schwarz | t
huge | 0.6 riesig / 0.2 groß / 0.2 gewaltig | a
nice | 0.6 nett / 0.4 freundlich | p
clever | 0.6 klug / 0.4 schlau | p
quiet | 0.55 ruhig / 0.45 still | a
cheap | 0.6 billig / 0.4 günstig | t
sad | 0.7 traurig / 0.3 betrübt | p
strange | 0.5 seltsam / 0.3 merkwürdig / 0.2 komisch | a
heavy | schwer | t
angry | 0.6 wütend / 0.4 zornig | p
strong | 0.7 stark / 0.3 kräftig | p
broken | 0.7 kaputt / 0.3 defekt | t
green | grün | t
rich | 0.8 reich / 0.2 wohlhabend | p
famous | 0.7 berühmt / 0.3 bekannt | a
dirty | 0.7 schmutzig / 0.3 dreckig | a
empty | leer | t
brave | 0.6 mutig / 0.4 tapfer | p
dangerous | gefährlich | a
lazy | 0.7 faul / 0.3 träge:träg | p
curious | neugierig | p
golden | golden | t
"""

# The third field: a with any tense, p with a past one, f with the future or a present.
TIMES = """
today | heute | a
yesterday | gestern | p
tomorrow | morgen | f
now | 0.65 jetzt / 0.35 nun | f
often | 0.6 oft / 0.4 häufig | a
in the evening | 0.6 am Abend / 0.4 abends | a
every day | 0.6 jeden Tag / 0.4 täglich | a
soon | 0.75 bald / 0.25 demnächst | f
sometimes | 0.65 manchmal / 0.35 gelegentlich | a
last week | 0.7 letzte Woche / 0.3 vorige Woche | p
in the morning | 0.6 am Morgen / 0.4 morgens | a
always | 0.7 immer / 0.3 stets | a
next week | 0.8 nächste Woche / 0.2 kommende Woche | f
at night | 0.5 nachts / 0.5 in der Nacht | a
recently | 0.5 neulich / 0.3 kürzlich / 0.2 vor kurzem | p
on Sunday | 0.7 am Sonntag / 0.3 sonntags | a
later | später | f
last year | 0.6 letztes Jahr / 0.4 im letzten Jahr | p
on Monday | 0.7 am Montag / 0.3 montags | a
"""

MANNERS = """
quickly | 0.6 schnell / 0.3 rasch / 0.1 flink
slowly | 0.8 langsam / 0.2 gemächlich
together | 0.6 zusammen / 0.4 gemeinsam
gladly | 0.55 gern / 0.45 gerne
alone | 0.75 allein / 0.25 alleine
quietly | 0.6 leise / 0.4 still
carefully | 0.6 vorsichtig / 0.4 sorgfältig
suddenly | 0.75 plötzlich / 0.25 auf einmal
happily | 0.6 fröhlich / 0.4 glücklich
secretly | 0.7 heimlich / 0.3 insgeheim
patiently | geduldig
loudly | 0.75 laut / 0.25 lautstark
"""

# The third field names the noun classes that follow: p persons, a animals, t things, l places.
PREPOSITIONS = """
in | in+dat | l
with | 0.8 mit+dat / 0.2 zusammen mit+dat | pat
behind | hinter+dat | ltp
near | 0.5 bei+dat / 0.3 in der Nähe von+dat / 0.2 nahe+dat | l
under | unter+dat | t
for | für+acc | p
in front of | vor+dat | lt
without | ohne+acc | pt
next to | 0.8 neben+dat / 0.2 bei+dat | tpl
"""

NAMES = "Anna Peter Maria Paul Lena Karl Sophie Oskar Julia Emil Clara Leo Nora Jakob Ida Anton"

INTRANSITIVE = """
sleep, sleeps, slept, slept | 0.8 schlafen schläft schlief geschlafen / 0.2 schlummern
work | 0.75 arbeiten / 0.25 schuften
arrive | 0.7 an|kommen kommt kam gekommen +s / 0.3 ein|treffen trifft traf getroffen +s
laugh | 0.7 lachen / 0.3 kichern
wake up, wakes, woke, woken | 0.7 auf|wachen +s / 0.3 erwachen +s
sing, sings, sang, sung | singen singt sang gesungen
return | 0.6 zurück|kommen kommt kam gekommen +s / 0.4 zurück|kehren +s
dance | tanzen
cry, cries, cried, cried | 0.65 weinen / 0.35 heulen
fall asleep, falls, fell, fallen | ein|schlafen schläft schlief geschlafen +s
smile | 0.8 lächeln / 0.2 schmunzeln
swim, swims, swam, swum | 0.8 schwimmen schwimmt schwamm geschwommen +s / 0.2 baden
stay | 0.75 bleiben bleibt blieb geblieben +s / 0.25 verweilen
take part, takes, took, taken | 0.7 teil|nehmen nimmt nahm genommen / 0.3 mit|machen
rest | 0.7 sich aus|ruhen / 0.3 rasten
"""

MOTION = """
go, goes, went, gone | 0.7 gehen geht ging gegangen +s / 0.3 laufen läuft lief gelaufen +s
come, comes, came, come | kommen kommt kam gekommen +s
drive, drives, drove, driven | fahren fährt fuhr gefahren +s
run, runs, ran, run | 0.6 laufen läuft lief gelaufen +s / 0.4 rennen rennt rannte gerannt +s
travel, travels, travelled, travelled | 0.65 reisen +s / 0.35 fahren fährt fuhr gefahren +s
hurry, hurries, hurried, hurried | 0.7 eilen +s / 0.3 hasten +s
flee, flees, fled, fled | 0.6 fliehen flieht floh geflohen +s / 0.4 flüchten +s
"""

TRANSITIVE_THING = """
buy, buys, bought, bought | 0.7 kaufen / 0.3 erwerben erwirbt erwarb erworben
find, finds, found, found | 0.7 finden findet fand gefunden / 0.3 entdecken
open | 0.55 öffnen / 0.45 auf|machen
carry, carries, carried, carried | 0.75 tragen trägt trug getragen / 0.25 schleppen
pick up | 0.6 ab|holen / 0.4 auf|heben hebt hob gehoben
need | 0.65 brauchen / 0.35 benötigen
use | 0.55 benutzen / 0.45 verwenden
close | 0.55 schließen schließt schloss geschlossen / 0.45 zu|machen
throw away, throws, threw, thrown | 0.75 weg|werfen wirft warf geworfen / 0.25 entsorgen
lose, loses, lost, lost | verlieren verliert verlor verloren
paint | 0.7 malen / 0.3 bemalen
choose, chooses, chose, chosen | 0.4 wählen / 0.35 aus|wählen / 0.25 aus|suchen
repair | 0.6 reparieren / 0.4 aus|bessern
steal, steals, stole, stolen | 0.65 stehlen stiehlt stahl gestohlen / 0.35 klauen
hide, hides, hid, hidden | 0.75 verstecken / 0.25 verbergen verbirgt verbarg verborgen
describe | 0.75 beschreiben beschreibt beschrieb beschrieben / 0.25 schildern
bring back, brings, brought, brought | zurück|bringen bringt brachte gebracht
"""

TRANSITIVE_ANY = """
see, sees, saw, seen | 0.75 sehen sieht sah gesehen / 0.25 erblicken
look at | 0.5 an|sehen sieht sah gesehen / 0.3 betrachten / 0.2 an|schauen
love | 0.7 lieben / 0.3 mögen mag mochte gemocht
look for | suchen
hear, hears, heard, heard | hören
watch, watches, watched, watched | 0.8 beobachten / 0.2 zu|sehen sieht sah gesehen @dat
forget about, forgets, forgot, forgotten | vergessen vergisst vergaß vergessen
admire | bewundern
sketch, sketches, sketched, sketched | zeichnen
"""

TRANSITIVE_PERSON = """
help | 0.65 helfen hilft half geholfen @dat / 0.35 unterstützen
visit | 0.75 besuchen / 0.25 auf|suchen
meet, meets, met, met | 0.6 treffen trifft traf getroffen / 0.4 begegnen +s @dat
call | 0.7 an|rufen ruft rief gerufen / 0.3 rufen ruft rief gerufen
follow | 0.75 folgen +s @dat / 0.25 verfolgen
thank | 0.7 danken @dat / 0.3 sich bedanken @bei+dat
invite | ein|laden lädt lud geladen
greet | 0.6 begrüßen / 0.4 grüßen
trust | 0.7 vertrauen @dat / 0.3 trauen @dat
support | 0.7 unterstützen / 0.3 bei|stehen steht stand gestanden @dat
recognise | 0.75 erkennen erkennt erkannte erkannt / 0.25 wieder|erkennen erkennt erkannte erkannt
congratulate | 0.75 gratulieren @dat / 0.25 beglückwünschen
"""

DITRANSITIVE = """
give, gives, gave, given | 0.65 geben gibt gab gegeben / 0.35 schenken
show, shows, showed, shown | 0.7 zeigen / 0.3 vor|führen
bring, brings, brought, brought | 0.7 bringen bringt brachte gebracht / 0.3 mit|bringen bringt brachte gebracht
send, sends, sent, sent | 0.75 schicken / 0.25 zu|senden
offer | an|bieten bietet bot geboten
sell, sells, sold, sold | verkaufen
lend, lends, lent, lent | 0.6 leihen leiht lieh geliehen / 0.4 aus|leihen leiht lieh geliehen
"""

PREPOSITIONAL = """
wait for | 0.75 warten @auf+acc / 0.25 erwarten
think of, thinks, thought, thought | denken denkt dachte gedacht @an+acc
talk about | 0.6 sprechen spricht sprach gesprochen @über+acc / 0.4 reden @über+acc
remember | 0.75 sich erinnern @an+acc / 0.25 denken denkt dachte gedacht @an+acc
dream of | träumen @von+dat
take care of, takes, took, taken | 0.65 sich kümmern @um+acc / 0.35 sorgen @für+acc
ask for | 0.65 bitten bittet bat gebeten @um+acc / 0.35 verlangen
"""

CLAUSAL = """
say, says, said, said | 0.7 sagen / 0.3 meinen
think, thinks, thought, thought | 0.5 denken denkt dachte gedacht / 0.3 glauben / 0.2 meinen
know, knows, knew, known | wissen weiß wusste gewusst
believe | glauben
hope | hoffen
claim | behaupten
notice | 0.6 bemerken / 0.4 merken
"""

CONTROL = """
try, tries, tried, tried | 0.7 versuchen / 0.3 probieren
begin, begins, began, begun | 0.5 beginnen beginnt begann begonnen / 0.5 an|fangen fängt fing gefangen
forget, forgets, forgot, forgotten | vergessen vergisst vergaß vergessen
decide | 0.6 beschließen beschließt beschloss beschlossen / 0.4 sich entschließen entschließt entschloss entschlossen
promise | versprechen verspricht versprach versprochen
"""
