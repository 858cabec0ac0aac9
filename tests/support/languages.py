"""The same three sentences, made up, in many languages and scripts."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Language:
    """Sentences of a language.

    Attributes:
        sentences: "The weather is fine today.", "We go to the park.", "Will you come too?"
        separator: what stands between two sentences.
        marks_ends: whether a mark shows where a sentence ends.
    """

    sentences: tuple[str, str, str]
    separator: str = " "
    marks_ends: bool = True

    @property
    def paragraph(self) -> str:
        """The sentences on one line."""
        return self.separator.join(self.sentences)


LANGUAGES = {
    "am": Language(("ዛሬ አየሩ ጥሩ ነው።", "ወደ መናፈሻ እንሄዳለን።", "አንተም ትመጣለህ፧")),
    "ar": Language(("الطقس جميل اليوم.", "سنذهب إلى الحديقة.", "هل ستأتي أنت أيضا؟")),
    "bg": Language(("Днес времето е хубаво.", "Отиваме в парка.", "Ще дойдеш ли и ти?")),
    "bn": Language(("আজ আবহাওয়া ভালো।", "আমরা পার্কে যাচ্ছি।", "তুমিও কি আসবে?")),
    "bo": Language(("དེ་རིང་གནམ་གཤིས་ཡག་པོ་འདུག།", "ང་ཚོ་གླིང་ག་ལ་འགྲོ།", "ཁྱེད་རང་ཡང་ཡོང་ངམ།")),
    "chr": Language(("ᎪᎯ ᎢᎦ ᎣᏍᏓ.", "ᎠᏂ ᎣᎩᎷᏨ.", "ᏂᎯᏍ ᏔᎷᏥ?")),
    "cs": Language(("Dnes je pěkné počasí.", "Jdeme do parku.", "Přijdeš také?")),
    "de": Language(("Heute ist schönes Wetter.", "Wir gehen in den Park.", "Kommst du auch?")),
    "dv": Language(("މިއަދު މޫސުން ރަނގަޅު.", "އަހަރެމެން ޕާކަށް ދަނީ.", "ތިމަންނަ އަންނާނެތަ؟")),
    "el": Language(("Ο καιρός είναι καλός σήμερα.", "Πάμε στο πάρκο.", "Θα έρθεις κι εσύ;")),
    "en": Language(("The weather is fine today.", "We go to the park.", "Will you come too?")),
    "es": Language(("Hoy hace buen tiempo.", "Vamos al parque.", "¿Vienes tú también?")),
    "fa": Language(("امروز هوا خوب است.", "ما به پارک می‌رویم.", "تو هم می‌آیی؟")),
    "fi": Language(("Tänään on kaunis sää.", "Menemme puistoon.", "Tuletko sinäkin?")),
    "fr": Language(("Il fait beau aujourd'hui.", "Nous allons au parc.", "Tu viens aussi ?")),
    "gu": Language(("આજે હવામાન સારું છે.", "અમે બગીચામાં જઈએ છીએ.", "તમે પણ આવશો?")),
    "he": Language(("מזג האוויר יפה היום.", "אנחנו הולכים לפארק.", "גם אתה תבוא?")),
    "hi": Language(("आज मौसम अच्छा है।", "हम बाग़ में जाते हैं।", "क्या तुम भी आओगे?")),
    "hu": Language(("Ma szép az idő.", "A parkba megyünk.", "Te is jössz?")),
    "hy": Language(("Այսօր եղանակը լավ է։", "Մենք գնում ենք այգի։", "Դու էլ կգա՞ս։")),
    "id": Language(("Cuaca hari ini bagus.", "Kami pergi ke taman.", "Apakah kamu juga ikut?")),
    "it": Language(("Oggi il tempo è bello.", "Andiamo al parco.", "Vieni anche tu?")),
    "iu": Language(("ᐅᓪᓗᒥ ᓯᓚ ᐱᐅᔪᖅ.", "ᐊᓂᔪᒍᑦ ᓄᓇᒧᑦ.", "ᐃᕝᕕᓪᓗ ᖃᐃᓛᖅᐱᑦ?")),
    "ja": Language(("今日は天気がいいです。", "公園に行きます。", "あなたも来ますか？"), ""),
    "jv": Language(("ꦲꦮꦤꦺꦲꦥꦶꦏ꧀꧉", "ꦲꦏꦸꦭꦸꦁꦔꦩꦫꦁꦠꦩꦤ꧀꧉", "ꦏꦺꦴꦮꦺꦩꦺꦭꦸ꧉")),
    "ka": Language(("დღეს კარგი ამინდია.", "ჩვენ პარკში მივდივართ.", "შენც მოხვალ?")),
    "km": Language(("ថ្ងៃនេះអាកាសធាតុល្អ។", "យើងទៅសួនច្បារ។", "អ្នកក៏មកដែរឬ?")),
    "kn": Language(("ಇಂದು ಹವಾಮಾನ ಚೆನ್ನಾಗಿದೆ.", "ನಾವು ಉದ್ಯಾನಕ್ಕೆ ಹೋಗುತ್ತೇವೆ.", "ನೀನೂ ಬರುತ್ತೀಯಾ?")),
    "ko": Language(("오늘은 날씨가 좋습니다.", "우리는 공원에 갑니다.", "당신도 옵니까?")),
    "lo": Language(
        ("ມື້ນີ້ອາກາດດີຫຼາຍແລະບໍ່ມີຝົນຕົກເລີຍແມ້ແຕ່ໜ້ອຍດຽວ", "ພວກເຮົາໄປສວນສາທາລະນະນຳກັນ", "ເຈົ້າຈະມານຳບໍ"),
        marks_ends=False,
    ),
    "ml": Language(("ഇന്ന് കാലാവസ്ഥ നല്ലതാണ്.", "ഞങ്ങൾ പാർക്കിലേക്ക് പോകുന്നു.", "നീയും വരുമോ?")),
    "mn": Language(("ᠥᠨᠥᠳᠦᠷ ᠴᠠᠭ ᠠᠭᠤᠷ ᠰᠠᠶᠢᠨ᠃", "ᠪᠢᠳᠡ ᠴᠡᠴᠡᠷᠯᠢᠭ ᠲᠦ ᠣᠴᠢᠨ᠎ᠠ᠃", "ᠴᠢ ᠪᠠᠰᠠ ᠢᠷᠡᠬᠦ ᠦᠦ᠃")),
    "mr": Language(("आज हवामान चांगले आहे.", "आम्ही बागेत जातो.", "तूही येशील का?")),
    "my": Language(("ယနေ့ ရာသီဥတု ကောင်းသည်။", "ကျွန်ုပ်တို့ ပန်းခြံသို့ သွားသည်။", "သင်လည်း လာမလား။")),
    "nqo": Language(("ߓߌ߬ ߕߟߋ ߣߌ߫ ߞߊ߫ ߢߌ߲߬.", "ߊ߲ ߧߋ߫ ߕߊ߯ ߟߊ߫߹", "ߌ ߝߣߊ߫ ߘߌ߫ ߣߊ߬؟")),
    "or": Language(("ଆଜି ପାଗ ଭଲ ଅଛି।", "ଆମେ ପାର୍କକୁ ଯାଉଛୁ।", "ତୁମେ ମଧ୍ୟ ଆସିବ କି?")),
    "pa": Language(("ਅੱਜ ਮੌਸਮ ਚੰਗਾ ਹੈ।", "ਅਸੀਂ ਬਾਗ਼ ਵਿੱਚ ਜਾਂਦੇ ਹਾਂ।", "ਕੀ ਤੂੰ ਵੀ ਆਵੇਂਗਾ?")),
    "pl": Language(("Dzisiaj jest ładna pogoda.", "Idziemy do parku.", "Czy ty też przyjdziesz?")),
    "pt": Language(("Hoje faz bom tempo.", "Vamos ao parque.", "Você também vem?")),
    "ru": Language(("Сегодня хорошая погода.", "Мы идём в парк.", "Ты тоже придёшь?")),
    "sat": Language(("ᱛᱮᱦᱮᱧ ᱦᱚᱭ ᱵᱮᱥ ᱜᱮᱭᱟ᱾", "ᱟᱞᱮ ᱵᱟᱜᱟᱱ ᱛᱮ ᱞᱮ ᱪᱟᱞᱟᱜ ᱠᱟᱱᱟ᱾", "ᱟᱢ ᱦᱚᱸ ᱦᱤᱡᱩᱜ ᱟᱢ?")),
    "si": Language(("අද කාලගුණය හොඳයි.", "අපි උද්යානයට යමු.", "ඔබත් එනවාද?")),
    "sv": Language(("Det är fint väder i dag.", "Vi går till parken.", "Kommer du också?")),
    "sw": Language(("Leo hali ya hewa ni nzuri.", "Tunaenda bustanini.", "Je, wewe pia utakuja?")),
    "ta": Language(("இன்று வானிலை நன்றாக உள்ளது.", "நாங்கள் பூங்காவிற்குச் செல்கிறோம்.", "நீயும் வருவாயா?")),
    "te": Language(("ఈరోజు వాతావరణం బాగుంది.", "మేము పార్కుకు వెళ్తున్నాము.", "నువ్వు కూడా వస్తావా?")),
    "th": Language(
        ("วันนี้อากาศดีมากและไม่มีฝนตกเลยสักนิดเดียว", "พวกเราไปเดินเล่นที่สวนสาธารณะด้วยกัน", "คุณจะมาด้วยไหม"),
        marks_ends=False,
    ),
    "ti": Language(("ሎሚ ኩነታት ኣየር ጽቡቕ እዩ።", "ናብ መናፈሻ ንኸይድ ኣሎና።", "ንስኻ እውን ክትመጽእ ዲኻ፧")),
    "tr": Language(("Bugün hava güzel.", "Parka gidiyoruz.", "Sen de geliyor musun?")),
    "uk": Language(("Сьогодні гарна погода.", "Ми йдемо до парку.", "Ти теж прийдеш?")),
    "ur": Language(("آج موسم اچھا ہے۔", "ہم باغ میں جاتے ہیں۔", "کیا تم بھی آؤ گے؟")),
    "vi": Language(("Hôm nay trời đẹp.", "Chúng tôi đi công viên.", "Bạn cũng đến chứ?")),
    "yi": Language(("הײַנט איז שיין וועטער.", "מיר גייען אין פּאַרק.", "וועסטו אויך קומען?")),
    "zh": Language(("今天天气很好。", "我们去公园。", "你也来吗？"), ""),
}
