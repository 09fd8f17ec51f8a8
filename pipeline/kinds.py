"""Which files are tried as video or as sound, by their names, and which formats are decoded.

Names only say what a file is tried as; what is in it is told by its content.
"""


def _endings(names: str) -> frozenset[str]:
    return frozenset(f".{name}" for name in names.split())


VIDEOS = _endings(
    "264 265 3g2 3gp amv asf avi divx dv f4v flv h264 hevc ivf m1v m2t m2ts m2v m4v mj2 mjpeg mjpg "
    "mk3d mkv mod mov mp4 mpe mpeg mpg mpv mts mxf nut ogm ogv ogx qt rm rmvb tod tp trp ts vob "
    "webm wmv wtv y4m"
)
SOUNDS = _endings(
    "3ga aac ac3 aif aifc aiff amr ape au caf dts eac3 flac m4a m4b mka mp2 mp3 mpa mpc oga ogg "
    "opus rf64 snd tta w64 wav wave weba wma wv"
)
DEMUXERS = (
    "aac,ac3,aiff,amr,ape,asf,au,av1,avi,caf,dts,dv,eac3,flac,flv,gxf,h264,hevc,ivf,loas,m4v,"
    "matroska,mjpeg,mov,mp3,mpc,mpc8,mpeg,mpegts,mpegvideo,mxf,nsv,nut,obu,ogg,rm,tak,tta,vc1,voc,"
    "vvc,w64,wav,wtv,wv,yuv4mpegpipe"
)
"""FFmpeg's names of the formats that are read: all of them keep to their own file."""
