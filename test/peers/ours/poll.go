package main

import (
	"context"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"rerack.dev/rerack/bmc"
	"rerack.dev/rerack/bmc/ipmi"
)

// poll reads the power of many BMCs through a Fleet, once with logins and then with the sessions held.
// BMCs at -holes further addresses are sockets of this process that nobody reads.
func poll(ctx context.Context, args []string) error {
	set := flag.NewFlagSet("poll", flag.ExitOnError)
	first := set.String("first", "127.77.0.1", "address of the first BMC; the others follow")
	n := set.Int("n", 100, "BMCs that answer")
	holes := set.Int("holes", 0, "BMCs that never do")
	user := set.String("user", "admin", "")
	password := set.String("password", "", "")
	rounds := set.Int("rounds", 1, "of polls; the first logs in")
	every := set.Duration("every", 0, "from the start of a round to that of the next, at least")
	timeout := set.Duration("timeout", 5*time.Second, "of one read")
	_ = set.Parse(args) // it exits
	addr, err := netip.ParseAddr(*first)
	if err != nil {
		return err
	}
	eps := make([]bmc.Endpoint, 0, *n+*holes)
	for range *n {
		eps = append(eps, bmc.Endpoint{Address: addr.String(), Protocol: bmc.IPMI})
		addr = addr.Next()
	}
	for i := range *holes {
		c, err := net.ListenPacket("udp4", net.JoinHostPort(addr.String(), "623"))
		if err != nil {
			return err
		}
		defer c.Close()
		// Spread among the others, the way they die.
		eps = slices.Insert(eps, (i+1)*len(eps)/(*holes+1), bmc.Endpoint{Address: addr.String(), Protocol: bmc.IPMI})
		addr = addr.Next()
	}
	fleet, err := bmc.NewFleet(bmc.Config{Openers: map[bmc.Protocol]bmc.Opener{bmc.IPMI: ipmi.Opener{}}, PollTimeout: *timeout,
		Credentials: func(context.Context, string) (bmc.Credential, error) {
			return bmc.Credential{User: *user, Password: bmc.NewSecret(*password)}, nil
		}})
	if err != nil {
		return err
	}
	pace := time.NewTicker(max(*every, time.Nanosecond))
	defer pace.Stop()
	for i := range *rounds {
		if i > 0 {
			<-pace.C
		}
		begin, before := time.Now(), cpuTime()
		var last time.Duration
		good, failure := 0, error(nil)
		fleet.Poll(ctx, eps, 0, func(r bmc.PollResult) {
			if r.Err != nil {
				failure = r.Err
				return
			}
			good++
			last = time.Since(begin)
		})
		if good != *n {
			return fmt.Errorf("round %d: %d of %d answered: %w", i, good, *n, failure)
		}
		fmt.Printf("round=%d last_ms=%.3f cpu_ms=%.3f good=%d\n", i, ms(last), ms(cpuTime()-before), good)
	}
	return fleet.Close(ctx)
}
