// Empty: lets linkname.go declare functions without a body.
