"""Texts on which every export is compared with torch: many scripts, short and long, odd signs."""

PROBE_TEXTS = (
    "The council voted to close the old bridge until engineers have checked every cable.",
    "Why does my phone get warm when it is charging?",
    "Two goals in the last five minutes turned the match around for the visitors.",
    "OK",
    "Bei ya unga imepanda tena, na wananchi wanaitaka serikali ichukue hatua mara moja.",
    "Mgonjwa alishauriwa kunywa maji mengi na kupumzika kwa siku tatu.",
    "Tuliondoka Mwanza alfajiri kwa meli na kufika Bukoba kabla ya saa sita.",
    "Wasichana wa Kisumu wametwaa kombe kwa mikwaju ya penalti.",
    "Ìjọba ti kéde pé àwọn ọmọ ilé-ìwé yóò padà sí kíláàsì ní ọjọ́ Ajé.",
    "Gwamnati ta ce za a gina sabon asibiti a kusa da kasuwar garin.",
    "Umndeni wonke wahlangana ekhaya ukuze ugubhe usuku lokuzalwa lukagogo.",
    "ዛሬ ጠዋት በአዲስ አበባ ከባድ ዝናብ ዘንቧል።",
    "ተማሪዎቹ አዲሱን ቤተ መጻሕፍት ጎበኙ።",
    "أعلن الفريق الطبي أن اللقاح الجديد آمن للأطفال.",
    "كم تستغرق الرحلة بالقطار من هنا إلى الميناء؟",
    "वैज्ञानिकों ने समुद्र की गहराई में एक नई मछली खोजी है।",
    "आज शाम का नाटक देर से शुरू होगा, कृपया धैर्य रखें।",
    "下周的足球决赛门票已经全部售完。",
    "这座山的北坡终年积雪，很少有人攀登。",
    "Учёные предупредили, что уровень воды в озере снова снижается.",
    "Поезд прибывает на второй путь через десять минут!",
    "La rivière a débordé pendant la nuit et deux villages sont isolés.",
    "El concierto se aplazó porque el cantante perdió la voz.",
    "Der Bundestag berät am Donnerstag über das neue Mietrecht.",
    "Sân bay mới sẽ mở cửa đón khách vào mùa xuân năm sau.",
    "Yeni müze, kentin en eski taş binasında ziyarete açıldı.",
    "明日の朝は霧が濃くなるので、運転に気をつけてください。",
    "새로운 도서관은 다음 달부터 밤 열 시까지 문을 엽니다.",
    "3,141.59 km² | +254 700 000 000 | 17:45 | 50 %",
    "Haha 😂😂 mechi ya jana ilikuwa moto 🔥 #derby @mashabiki",
    "Andika <s> mwanzoni, </s> mwishoni, na <b>herufi nzito</b> katikati.",
    "ONYO: USIGUSE WAYA HUU! umeme mkali...",
    "Before the road was built, traders carried salt, cloth and copper for eleven days across the "
    "plateau, resting at wells that only the guides could find, and selling what was left in the "
    "markets of three small towns; today the same journey takes a lorry one afternoon, although in "
    "the rainy season the river still decides who may pass, and the old wells, which nobody cleans "
    "any more, have become places where children look for frogs.",
)
