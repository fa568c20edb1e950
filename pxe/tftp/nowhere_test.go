package tftp

import "net"

// nowhere takes what is sent to it; nothing else of it is used.
type nowhere struct{ net.PacketConn }

func (nowhere) WriteTo(b []byte, _ net.Addr) (int, error) { return len(b), nil }
