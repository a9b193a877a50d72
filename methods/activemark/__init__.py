"""ActiveMark: a message written into the residual stream and read further on."""

from methods.activemark.method import ActiveMark as ActiveMark
