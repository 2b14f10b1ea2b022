"""Fifty secrets as people write them into mails, each in its sentence."""

from __future__ import annotations

PHONES = (
    *("+44 20 7946 0958", "+44 7700 900123", "07700 900456", "020 7946 0321", "(020) 7946 0123"),
    *("+49 30 901820", "030/901 820-33", "+33 1 99 00 12 34", "01 99 00 56 78", "555-010-1234"),
    *("(555) 010-9876", "+1 555 010 2345", "0049 171 3920011", "5550107788"),
)
ACCOUNTS = (
    *("GB29 NWBK 6016 1331 9268 19", "GB82WEST12345698765432", "DE89 3704 0044 0532 0130 00"),
    *(
        "DE75512108001245126199",
        "FR14 2004 1010 0505 0001 3M02 606",
        "ES91 2100 0418 4502 0005 1332",
    ),
    *("NL91 ABNA 0417 1643 00", "IT60 X054 2811 1010 0000 0123 456", "4111 1111 1111 1111"),
    *("5500-0000-0000-0004", "60-16-13", "31926819"),
)
PASSWORDS = (
    *("the password is hunter2!", "password: correcthorse", "Password = T0pSecret", "pwd: x9$kLm"),
    *("the PIN is 4711", "my PIN: 8205", "das Passwort lautet Blume#77", "Kennwort: Wolke9sieben"),
    *(
        "le mot de passe est Chat&Chien3",
        "the passphrase is `open_sesame`",
        "API key: sk-9f8e7d6c5b",
    ),
    "the password for the shed is Gnome_42",
)
ADDRESSES = (
    *("12 Elm Street, Oldham OL1 3AB", "7 Church Lane", "221B Baker Street, London NW1 6XE"),
    *(
        "48 Rose Hill Avenue",
        "1600 Maple Drive, Springfield, IL 62704",
        "Hauptstraße 12, 10115 Berlin",
    ),
    *("Lindenweg 3", "14 rue des Lilas, 75011 Paris", "3 bis avenue Foch", "maud.s@example.net"),
    *("m_scott+bank@mail.example.org", "SW1A 2AA"),
)
SENTENCES = (
    *(f"Ring me on {secret} after lunch." for secret in PHONES),
    *(f"Please pay it into {secret} by Friday." for secret in ACCOUNTS),
    *(f"For you alone, {secret}, and then it works." for secret in PASSWORDS),
    *(f"Write to {secret}. It is the blue door." for secret in ADDRESSES),
)
WORDS_OF_PASSWORDS = (
    *("hunter2!", "correcthorse", "T0pSecret", "x9$kLm", "4711", "8205", "Blume#77"),
    *("Wolke9sieben", "Chat&Chien3", "open_sesame", "sk-9f8e7d6c5b", "Gnome_42"),
)
SECRETS = (*PHONES, *ACCOUNTS, *WORDS_OF_PASSWORDS, *ADDRESSES)
