"""Records understood: every known format becomes a Conversation, or the record is refused with a reason."""

from finetooth.data.formats.reading import BadRecord as BadRecord
from finetooth.data.formats.reading import Format as Format
from finetooth.data.formats.reading import FormatSetting as FormatSetting
from finetooth.data.formats.reading import detect_format as detect_format
from finetooth.data.formats.reading import settle_format as settle_format
from finetooth.data.formats.reading import to_conversation as to_conversation
from finetooth.data.formats.reading import unread_fields as unread_fields
