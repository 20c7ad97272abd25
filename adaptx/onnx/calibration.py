"""What an int8 graph is calibrated on: texts of many languages, their tokens shuffled, any tokens.

The shuffled rows and those drawn from the whole vocabulary reach far more of it than any list of
texts: with them, the int8 encoder came as near to fp32 as with ten times the texts
(docs/performance.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SHUFFLED, DRAWN = 120, 120  # rows
LONGEST = 40  # tokens of such a row

CALIBRATION_TEXTS = (
    "Mvua kubwa ilinyesha usiku kucha na barabara ya Kilwa haipitiki.",
    "Walimu wanadai nyongeza ya mishahara kabla ya muhula mpya kuanza.",
    "Je, unajua mahali ninapoweza kununua tiketi za treni?",
    "Òjò rọ̀ púpọ̀ ní alẹ́ àná, afárá tó wà ní ìlú wa sì ti já.",
    "Ẹ jọ̀wọ́, níbo ni mo ti lè rí dókítà tó ń tọ́jú eyín?",
    "Manoma sun ce damina ta zo da wuri a bana.",
    "Ina son in sayi littafin tarihi daga wannan kanti.",
    "Ndị ọrụ ugbo na-ere ji na akpụ n'ahịa Onitsha kwa ụbọchị.",
    "Abafundi bazobhala izivivinyo zabo ngoNovemba kulo nyaka.",
    "Utata uthenge inqwelo entsha, kodwa ayikasebenzi kakuhle.",
    "Abaturage basabwe kubika amazi meza mbere y'igihe cy'izuba.",
    "Dowladdu waxay dhistay waddo cusub oo isku xirta labada magaalo.",
    "የገበያው ዋጋ በዚህ ሳምንት ትንሽ ቀንሷል።",
    "ልጆቹ ከትምህርት ቤት ሲመለሱ ኳስ ተጫወቱ።",
    "ሓኪም ንሕሙማት ኣብ ሆስፒታል ይርእዮም ኣሎ።",
    "The committee will publish its findings on river pollution next spring.",
    "She asked whether the museum was open on public holidays.",
    "lol that goal was offside, the ref needs new glasses!!",
    "Version 4.2.1 fixes a crash when the file name contains spaces.",
    "Mix the flour with two eggs, a pinch of salt and half a litre of milk.",
    "Le train de nuit pour Marseille partira avec vingt minutes de retard.",
    "Pourriez-vous m'indiquer la pharmacie la plus proche ?",
    "Die Forscher entdeckten im Watt eine bisher unbekannte Schneckenart.",
    "Können wir das Treffen auf Freitagvormittag verschieben?",
    "La cosecha de café fue mejor de lo que esperaban los agricultores.",
    "¿Cuánto cuesta enviar este paquete a Montevideo?",
    "O jogo foi adiado por causa da chuva forte em Maputo.",
    "A prefeitura plantou duas mil árvores ao longo do rio.",
    "Il mercato del pesce apre alle cinque del mattino.",
    "De brug blijft tot het einde van de maand gesloten voor vrachtwagens.",
    "Rada miasta zgodziła się na budowę nowej linii tramwajowej.",
    "Врачи советуют больше ходить пешком и меньше сидеть перед экраном.",
    "В этом году урожай яблок оказался рекордным.",
    "Учні посадили біля школи двадцять молодих лип.",
    "Το πλοίο για την Κρήτη φεύγει κάθε βράδυ στις εννέα.",
    "Depremde hasar gören okul yeniden açıldı.",
    "Bu akşam hava soğuk olacak, montunu almayı unutma.",
    "افتتحت المكتبة العامة فرعها الجديد قرب محطة القطار.",
    "هل يمكنني دفع الفاتورة بالبطاقة أم نقدا فقط؟",
    "بارندگی شدید باعث بسته شدن جاده کوهستانی شد.",
    "ڈاکٹروں نے بچوں کو ٹیکے لگوانے کا مشورہ دیا ہے۔",
    "किसानों ने नहर में पानी छोड़ने की माँग की है।",
    "क्या यह दवा खाने से पहले लेनी चाहिए?",
    "নদীর পানি বাড়ায় গ্রামের মানুষ উঁচু জায়গায় চলে গেছে।",
    "இந்த ஆண்டு மாம்பழ விளைச்சல் மிகவும் நன்றாக உள்ளது.",
    "రేపు ఉదయం రైలు ఆలస్యంగా వస్తుందని ప్రకటించారు.",
    "ลูกค้าสามารถคืนสินค้าได้ภายในเจ็ดวัน",
    "Chợ nổi họp từ sáng sớm, thuyền bè đậu kín cả khúc sông.",
    "Petugas memadamkan kebakaran di gudang kayu itu dalam dua jam.",
    "科学家发现了一种能在低温下发光的细菌。",
    "请问这趟公交车经过人民医院吗？",
    "新しい橋の工事は来年の三月に終わる予定です。",
    "このスープはとても熱いので、ゆっくり飲んでください。",
    "올해 김장 배추 가격이 작년보다 두 배나 올랐다.",
    "המורה ביקשה מהתלמידים לכתוב סיפור קצר על הים.",
    "https://example.org/maktaba?id=42&lugha=sw",
    "Simu: +255 22 211 0000, saa 2:30 asubuhi - 11:00 jioni (Jumatatu-Ijumaa)",
    "🎉🎉 hongera sana timu yetu 💪🏾 #fainali2024",
    "E = mc², 37 °C, 1/2, €19.99, 10^-6, [a-z]+, {\"ufunguo\": null}",
    "Ndiyo.",
)  # fmt: skip


def calibration_rows(texts: Sequence[Sequence[int]], vocabulary: int) -> list[list[int]]:
    """Token ids of the texts, and rows made of them: shuffled pieces, and pieces of the vocabulary.

    A row made keeps the first and the last token of a text, which are special ones.
    """
    rng = np.random.default_rng(0)
    body = np.array([token for row in texts for token in row[1:-1]])
    first, last = texts[0][0], texts[0][-1]
    rows = [list(row) for row in texts]
    for pool, count in ((body, SHUFFLED), (np.arange(vocabulary), DRAWN)):
        for length in rng.integers(2, LONGEST, count):
            rows.append([first, *(int(token) for token in rng.choice(pool, length)), last])
    return rows
