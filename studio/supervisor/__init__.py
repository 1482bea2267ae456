"""`manage.py up`: Studio's processes on one machine, started, watched, restarted and stopped together.

Nothing here knows Django or rows: it is process supervision. The management command assembles it.
"""
