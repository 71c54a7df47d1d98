"""Word families for which the rules of French verse need more than the spelling.

The patterns from `SYNAERESIS_I` to `EITHER_O` are matched against a word with a `/` before the first of two vowels
that meet: `d/iabl` covers *diable*, *diablesse*, *endiablé*. The lists were written by hand from the usage that
manuals of versification describe; nothing is copied from a dictionary.
"""

import re


def word_list(text: str) -> frozenset[str]:
    """The words of a text, separated by spaces."""
    return frozenset(text.split())


def _family(patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(patterns.split()))


# Words whose h is aspirated: no e is elided before them. Each entry is the beginning of a word.
ASPIRATED_H = _family(
    r"""
        ha$ hach hag hai haï hâ hal(?!eine|luc|ogèn) ham(?!eç|adr) han hap har(?!mon|usp) has haub haus haut hav
        hay haz hé$ heaum hél(?:er|ait|ant|a)$ hem$ hein$ henn hérau hère hériss herni héron héros$ hers hêtr
        heu$ heurt hib hic$ hid hiérarch hie$ hiss hi$ ho$ hobe hoch holà hola holl homard hong honni hont hoqu
        hord horion hors hott hou hu$ huch hue hué hua huan huguen huit(?!r) hulott hulul hum(?:er|é|ant|ait|a|e)$
        hun$ huns$ hupp hur huss(?!ie) hutt
        """
)
# Words that begin with a vowel but forbid elision, and words before which usage varies.
NO_ELISION = re.compile(r"onz|ouist|yacht|yol|yatag|uhlan|y[aeo](?!ux|us)")
EITHER_ELISION = word_list("oui henri hyène hyènes ouate huis ha hé ho holà hola hein")

# Words whose -ent is sounded (nouns, adjectives, adverbs, third person singular).
SOUNDED_ENT = word_list(
    """
    souvent auvent avent couvent convent paravent fervent contrevent engoulevent
    talent insolent opulent turbulent indolent somnolent dolent virulent succulent corpulent truculent
    relent vigilent pestilent bienveillent violent excellent équivalent nonchalent
    présent absent représent ressent consent pressent assent
    accent récent décent indécent innocent adolescent convalescent vincent effervescent
    accident incident occident évident ardent prudent imprudent impudent confident président résident
    dissident trident strident précédent antécédent provident chiendent
    argent agent urgent diligent négligent indigent intelligent régent sergent tangent contingent
    astringent insurgent entregent
    parent apparent transparent différent indifférent torrent concurrent adhérent cohérent inhérent
    révérent déférent belligérent laurent florent garent
    serpent arpent repent
    fréquent éloquent conséquent subséquent inconséquent grandiloquent onguent
    pénitent impénitent content mécontent impotent compétent patent latent intermittent malcontent
    omnipotent ventripotent
    permanent éminent continent imminent pertinent impertinent proéminent incontinent abstinent
    influent affluent confluent congruent
    patient impatient orient client inconvénient ingrédient expédient escient récipient émollient
    quotient indulgent conscient inconscient
    """
)
# Words whose -ent is sounded or mute: le couvent / les poules couvent, il est content / ils content.
EITHER_ENT = word_list(
    """couvent content violent excellent président résident négligent équivalent parent pressent
    affluent influent ferment convergent expédient précédent"""
)
# Stems of verbs in -mer: their -ment is mute; every other -ment is a noun or an adverb.
VERBS_IN_MER = word_list(
    """
    aim dorm form charm anim ranim nomm enflamm consum exprim blasphèm blasphêm sèm parsèm fum parfum allum
    rallum estim mésestim supprim imprim comprim déprim réprim arm alarm désarm affirm confirm endorm rendorm
    transform inform conform réform déform assomm consomm chôm ram clam réclam proclam déclam acclam affam
    diffam tram bram écum présum résum assum accoutum plum abîm abym prim opprim rim grim décim envenim
    intim ferm enferm referm renferm germ calm embaum gomm somm surnomm renomm dénomm pâm blâm entam essaim
    hum exhum inhum légitim périm escrim
    """
)

# Stems of verbs in -ier: their i is a syllable in every form.
VERBS_IN_IER = re.compile(
    r"(?:re|r|dé|mé|més)?(?:l|rall|n|ren|man|mar|sc|f|conf|par|appar|cop|charr|p|sour|r)|.*[ié]f|.*(?:"
    + _family(
        """
        humil concil résil spol pall fol affil exp pép contrar injur var salar inventor color histor excor étud
        mend reméd déd congéd expéd répud parod irrad incend préc assoc dissoc négoc remerc souc grac licenc
        fianc différenc vic offic bénéfic init balbut chât amnist rassas extas calomn commun ingén env conv dév
        obv asphyx réfug privilég justic supplic graph dén
        """
    ).pattern
    + ")"
)

# Verb stems whose -ions is one syllable even without the pronoun nous (avions, serions, voulions).
SYNAERESIS_IONS = re.compile(
    r"(?:[aeéoui]r|rr|v|(?:^e|f|p|d|s)uss|puiss|niss|^ét|^all|oul|en|fais|dis|dorm|aim|ett|batt)$"
)

# i before a vowel: one syllable (synaeresis).
SYNAERESIS_I = _family(
    r"""
    (?:^|[aeéiou])d/iabl d/iacr ^f/iacr d/iantr ^l/iard mill/iard p/iastr p/ioch m/ioch ch/iourm
    it/ié oit/ié ^p/ié(?:$|t(?!é)|ç|g|d|c|m) [lf]/iefs?$ s/ié(?:g|cl) t/iéd ass/ié(?:g|r) n/iéc f/iév l/iév m/iév
    ^[cfm]/iel emm/iel ^v/iell
    ^b/ien b/ien(?:s|$|t|v|f|h|d) comb/ien ^r/iens?$ vaur/ien ^[mts]/ien(?:$|s$|n) ^ch/ien chrét/ien ^v/ien
    (?:^|main|sou|re|entre|con|dé|obs|ob|abs|appar|rappar|ét)t/ien(?!c)
    (?:^|a|re|de|par|inter|pré|sur|con|dis|sub|contre|ad|pro|sou|discon|ressou|bien|obv)v/ien
    d/ieu$ (?:^a?|demi)d/ieux$ ^l/ieu(?!r) mil/ieu banl/ieu m/ieux ^v/ieu ^c/ieux$ ess/ieu ép/ieu ^p/ieuvr ^y/eu
    ns/ieur ess/ieur ^s/ieur lus/ieur hébr/ieu
    v/ieil v/iei ^s/ied ss/ied p/ied ^p/iet p/ierr t/ier[cs] ^v/ierg ^c/ierg f/ier(?:t|s$) nt/iers?$
    ^/y
    """
)
# i before a vowel: one syllable or two.
EITHER_I = _family(
    r"""
    h/ier ^anc/ien ^f/iers?$ gard/ien b/iais n/iais op?in/iâtr f/iol bab/iol best/iol car/iol m/iaul p/iaul p/iaill
    char/iot lor/iot mat/ias v/iand ca?h/ier f/ient p/iaf mar/ionn
    conv/ient$ sangl/ier boucl/ier gr/ie[fv] br/ie[fv] best/iaux k/iosq v/iair h/iérogl
    """
)
# i before an open e: two syllables (one in all other words, such as lumière, assiette).
DIAERESIS_IE = _family(r"^d/ièt qu?/ièt ^h/ièr jul/iett henr/iett ar/iett")
# u before i: two syllables, or one or two (one in all other words, such as nuit).
DIAERESIS_UI = _family(r"^r/uin ^br/uin dr/uid fl/uid ^s/uicid u/it [dnptlgx]/uité g[eé]n/uin t/uition tr/uism")
EITHER_UI = _family(r"br/ui(?:r|ss) jés/uit grat/uit ^p/uîn fort/uit")
# u before another vowel: one syllable or two (two in all other words).
EITHER_U = _family(r"éc/uell s/uèd")
# ou before a vowel: one syllable, or one or two (two in all other words).
SYNAERESIS_OU = _family(r"^/oui$ /ouins?$ /ouin[cd] ^/oues ^/ouais ^/ouist")
EITHER_OU = _family(
    r"f/ouet ch/ouett gir/ouett pir/ouett f/ouin l/ouis c/ouard c/ouenn d/ouan ^/ouat ^/ouaill éd/ouard"
)
# o before e: one syllable, or one or two (two in all other words).
SYNAERESIS_O = _family(r"m/o[eëê]l p/o[êeë]l")
EITHER_O = _family(r"^p/o[eëè][mts]")

# Rhymes. Words in -er whose r is sounded; old verse also lets them rhyme with infinitives, for the eye.
SOUNDED_ER = re.compile(
    r"mer|cher|fier|hier|ver|fer|enfer|hiver|amer|outremer|tier|univer|enver|diver|traver|perver"
    r"|jupiter|lucifer|esther|auster|cancer|éther|reister|pater|magister|abner|gaster"
)
# Words whose oi is not the old spelling of ai: nouns, and verbs in the present tense.
TRUE_OI = word_list(
    """
    bois fois mois lois rois trois dois vois crois reçois aperçois conçois poids pois voix croix noix choix toit
    droit froid doit voit croit reçoit boit endroit adroit exploit étroit détroit moi toi soi foi loi roi quoi
    effroi emploi convoi tournoi pourquoi envoi renvoi aloi beffroi bourgeois courtois hautbois villageois soit
    autrefois toutefois parfois sournois putois carquois empois patois gaulois grégeois croît accroît doigt doigts
    toits droits endroits exploits sois émoi désarroi surcroît aboi abois pantois minois octroi charroi aperçoit
    conçoit
    """
)
# Stems whose -ille sounds as in ville, not as in fille.
SOUNDED_ILL = re.compile(r"^[vm]ill$|(?:tranqu|dist|osc|[dsé]ev|év|g|pup|imbéc|ach|cam|luc|tras)ill$|(?:sib|id)yll$")
# Masculine and feminine rhyme words whose sounds the spelling does not show, or that have several.
IRREGULAR_MASCULINE = {
    word: frozenset(sounds.split("/"))
    for word, _, sounds in (
        entry.partition(":")
        for entry in word_list(
            """
            eu:y eus:y eut:y eût:y est:E et:é les:E des:E mes:E tes:E ses:E ces:E es:E clef:é clefs:é fils:i/is
            hélas:a/as tous:U/Us sens:A/As plus:y mars:ars ours:Urs/Ur os:o/os lis:i/is lys:i/is jadis:i/is
            mœurs:Q/Qrs/Qr monsieur:Q/Qr messieurs:Q/Qr sept:Et net:E/Et fat:a/at temps:A champs:A champ:A corps:or
            fusil:i gentil:i sourcil:i sourcils:i outil:i outils:i persil:i/il péril:il/iJ avril:il mil:il fil:il
            sang:A rang:A flanc:A blanc:A long:O joug:U bourg:Ur plomb:O respect:E/Ek aspect:E/Ek estomac:a tabac:a
            hymen:I/En amen:I/En examen:I/En éden:I/En clerc:Er porc:or/ork nerf:Er/Erf cerf:Er/Erf tronc:O franc:A
            banc:A jonc:O croc:o/ok broc:o/ok coq:ok/o donc:O/Ok il:il/i pays:i soûl:U soûls:U œufs:Q bœufs:Q
            nerfs:Er cerfs:Er août:U saoul:U paon:A faon:A solennel:El
            """
        )
    )
}
IRREGULAR_FEMININE = {"femme": "am@", "femmes": "am@", "moelle": "wal@", "moelles": "wal@"}
