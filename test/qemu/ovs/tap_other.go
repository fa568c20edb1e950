//go:build !linux

package ovs

import (
	"os"

	"rerack.dev/rerack/internal/fault"
)

var errLinux = fault.New(fault.Unsupported, "Open vSwitch runs on Linux only")

type namespace struct{}

func newNamespace() (*namespace, error)     { return nil, errLinux }
func (*namespace) tap(string) (*tap, error) { return nil, errLinux }
func (*namespace) enter() error             { return errLinux }
func (*namespace) close() error             { return nil }

type tap struct{ *os.File }

func (*tap) setCarrier(bool) error { return errLinux }
func (*tap) drop()                 {}
func (*tap) interrupt()            {}
func (*tap) resume()               {}
