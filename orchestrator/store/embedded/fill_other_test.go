//go:build !linux

package embedded_test

import "errors"

func fill(string) error { return errors.New("needs Linux") }
