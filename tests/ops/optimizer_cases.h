static void check_optimizer(session *s) { (void)s; }
